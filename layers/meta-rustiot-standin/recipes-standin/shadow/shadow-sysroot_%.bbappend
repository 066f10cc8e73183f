# The stand-in of the C library has users, so this comes before it.
INHIBIT_DEFAULT_DEPS:rustiot = "1"
