SUMMARY = "wic of OE-core's branch walnascar"
DESCRIPTION = "Verification only. The last release that had it in its tree; RUSTIOT_STANDIN_WIC names a checkout of it."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

do_install () {
    [ -e "${RUSTIOT_STANDIN_WIC}/scripts/wic" ] || bbfatal "RUSTIOT_STANDIN_WIC must name a checkout of OE-core's branch walnascar"
    standin_script ${D}${bindir}/wic "exec python3 ${RUSTIOT_STANDIN_WIC}/scripts/wic \"\$@\""
}
