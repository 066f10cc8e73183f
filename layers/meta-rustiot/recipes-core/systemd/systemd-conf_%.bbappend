# conf/rootfs has the product's own settings; the package's network file would take every wired port first.
PACKAGECONFIG:rustiot = ""

do_install:append:rustiot () {
    # Nothing stays, directories neither: one that is in no package is an error.
    find ${D} -mindepth 1 -delete
}
ALLOW_EMPTY:${PN}:rustiot = "1"
