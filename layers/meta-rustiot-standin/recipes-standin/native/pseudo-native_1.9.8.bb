SUMMARY = "The build machine's pseudo in the place of the release's"
DESCRIPTION = "Verification only. conf/rustiot-standin.inc says what it is told."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

PROVIDES += "virtual/fakeroot-native"
STANDIN_TOOLS = "pseudo:/usr/bin/pseudo"
