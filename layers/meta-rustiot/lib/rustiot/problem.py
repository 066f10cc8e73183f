#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""The one error of this package: what is wrong, where, and what to do about it."""


class Problem(Exception):
    """A finding for people. Its text is one sentence that names file and key, and one that names the remedy."""
