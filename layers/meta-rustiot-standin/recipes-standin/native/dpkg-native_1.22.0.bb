SUMMARY = "The build machine's dpkg"
DESCRIPTION = "Verification only. Packages' scripts run outside of the root and find it in D, which OE-core's own dpkg sets."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

do_install () {
    for name in dpkg-deb dpkg-query dpkg-split; do
        standin_script ${D}${bindir}/$name "exec /usr/bin/$name \"\$@\""
    done
    standin_script ${D}${bindir}/dpkg \
        "for a do case \$a in --root=*) export D=\${a#--root=} OFFLINE_ROOT=\${a#--root=} ;; esac; done; exec /usr/bin/dpkg \"\$@\""
}
