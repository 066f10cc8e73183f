#
# Copyright RustIoT OS contributors
#
# SPDX-License-Identifier: MIT OR Apache-2.0
#
"""When a release was built: the time that devices with it know to have passed, whatever their clock says. The lab image's
builder reads dates by the same rules (rust/crates/rustiot-image/src/date.rs); no file of an image bears this time."""

import datetime
import os
import re
import subprocess

from rustiot.problem import Problem

DAY = 24 * 3600
# 2025-01-01: no release of this system is older.
EARLIEST = 1735689600
# How far a date may be ahead of the build machine's clock: a date is one somewhere on earth.
AHEAD = DAY
WRITE = "write a day such as 2026-11-27, or Unix seconds"


def of_last_commit(repo):
    """The day of the last commit of the clone at `repo` (UTC), as it is written; empty where there is none."""
    command = ["git", "-c", "safe.directory=" + repo, "-C", repo, "log", "-1", "--no-show-signature", "--format=%ct"]
    # What was unpacked inside somebody's own repository has nothing to do with its commits.
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(repo))
    environment.pop("GIT_DIR", None)
    try:
        said = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
        return datetime.datetime.fromtimestamp(int(said), datetime.timezone.utc).strftime("%Y-%m-%d")
    except (OSError, ValueError, OverflowError, subprocess.CalledProcessError):
        return ""


def written(seconds):
    """For people."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OSError, ValueError, OverflowError):
        return "%d s after 1970" % seconds


def seconds(name, text, now):
    """Unix seconds of a day (its beginning in UTC) or of seconds; refuses what devices could not live with. `name` is the
    variable that has the text."""
    if re.fullmatch("[0-9]+", text):
        found = int(text)
    elif re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        try:
            day = datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.timezone.utc)
        except ValueError as error:
            raise Problem('%s is "%s", which is no date; %s' % (name, text, WRITE)) from error
        found = int(day.timestamp())
    else:
        raise Problem('%s is "%s", which is no date; %s' % (name, text, WRITE))
    if found < EARLIEST:
        raise Problem("%s is %s; no release is older than 2025, name the day of this one" % (name, written(found)))
    if found > now + AHEAD:
        raise Problem(
            "%s is %s, later than this machine's clock (%s); devices would take what is signed until then for expired:"
            " name another day, or set the clock" % (name, written(found), written(int(now)))
        )
    return found


def build_epoch(text, epoch, production, now):
    """The build time of a release: RUSTIOT_BUILD_DATE, else, but not in production, the time of the files."""
    if text:
        return seconds("RUSTIOT_BUILD_DATE", text, now)
    if production:
        raise Problem(
            "RUSTIOT_PRODUCTION is set, RUSTIOT_BUILD_DATE is not, and RUSTIOT_REPO is no clone with a last commit; %s"
            " (docs/yocto.md, A release)" % WRITE
        )
    return seconds("RUSTIOT_EPOCH", epoch, now)
