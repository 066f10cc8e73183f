#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# For recipes that carry the release's date: skipped with the reason where it can be none.
#
# RUSTIOT_BUILD_EPOCH   when the release was built, Unix seconds: RUSTIOT_BUILD_DATE, read and checked

inherit rustiot_messages

RUSTIOT_BUILD_EPOCH = "${@rustiot_said(d, rustiot.adapters.build_epoch)}"
RUSTIOT_BUILD_EPOCH[vardepvalue] = "${RUSTIOT_BUILD_EPOCH}"

python () {
    try:
        rustiot.adapters.build_epoch(d)
    except rustiot.problem.Problem as problem:
        raise bb.parse.SkipRecipe(str(problem))
}
