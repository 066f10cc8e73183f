SUMMARY = "The build machine's RAUC"
DESCRIPTION = "Verification only. Signs and writes bundles."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

STANDIN_TOOLS = "rauc:/usr/bin/rauc"
