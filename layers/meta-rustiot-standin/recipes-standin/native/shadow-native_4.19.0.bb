SUMMARY = "The build machine's groupadd and useradd"
DESCRIPTION = "Verification only. Debian's enter the root that they are told by --root, which needs a whole system there; --prefix is what OE-core's do."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

do_install () {
    for name in groupadd groupdel groupmod useradd userdel usermod; do
        standin_script ${D}${bindir}/$name "for a do shift; [ \"\$a\" = --root ] && a=--prefix; set -- \"\$@\" \"\$a\"; done; exec /usr/sbin/$name \"\$@\""
    done
}
