SUMMARY = "The build machine's rpmdeps"
DESCRIPTION = "Verification only. do_package asks it which libraries a file needs."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

STANDIN_TOOLS = "rpm/rpmdeps:/usr/lib/rpm/rpmdeps"
