#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# For recipes that sign, or that carry what signatures are checked against: skipped with the reason where a key is missing,
# and in production (RUSTIOT_PRODUCTION = "1") where one comes from the development CA.

python () {
    names = ("RUSTIOT_KEYRING", "RUSTIOT_SIGNING_CERT", "RUSTIOT_SIGNING_KEY")
    for name in names + ("RUSTIOT_REPOSITORY_ROOT",):
        # A key that appears later is noticed.
        if d.getVar(name) and not rustiot.signing.is_token(d.getVar(name)):
            bb.parse.mark_dependency(d, d.getVar(name))
    try:
        rustiot.signing.check(d.getVar("RUSTIOT_PRODUCTION") == "1", *[d.getVar(name) for name in names])
        rustiot.signing.check_repository_root(d.getVar("RUSTIOT_REPOSITORY_ROOT"))
    except rustiot.problem.Problem as problem:
        raise bb.parse.SkipRecipe(str(problem))
}
