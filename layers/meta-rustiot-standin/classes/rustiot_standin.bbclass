#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Verification only: no SDK is made, so nobody needs what it would be made of.

python () {
    for task in ("do_populate_sdk", "do_populate_sdk_ext", "do_testsdk", "do_testsdkext", "do_sdk_depends"):
        if d.getVarFlag(task, "task", False):
            bb.build.deltask(task, d)
}
