#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# How this layer's recipes say what is wrong: a recipe that cannot be built for this MACHINE is skipped with the reason,
# which BitBake shows to whoever asks for it; everything else stops.

def rustiot_said(d, compute):
    """The value of `compute(d)`, or an empty one where the recipe is going to be skipped for the same reason."""
    try:
        return compute(d)
    except rustiot.problem.Problem:
        return ""

def rustiot_skip_without_board(d):
    """Skips the recipe where the board is unknown or its file is wrong. A corrected file is noticed all the same."""
    for directory in (d.getVar("RUSTIOT_BOARD_DIRS") or "").split(":"):
        bb.parse.mark_dependency(d, os.path.join(directory, "%s.toml" % d.getVar("RUSTIOT_BOARD")))
    try:
        rustiot.adapters.board(d)
    except rustiot.problem.Problem as problem:
        raise bb.parse.SkipRecipe(str(problem))
    return False

def rustiot_try(d, compute, *arguments):
    """Runs `compute(*arguments)`; what is wrong ends the task with its text alone."""
    try:
        return compute(*arguments)
    except rustiot.problem.Problem as problem:
        bb.fatal(str(problem))
