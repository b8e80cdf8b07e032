"""Settings of all tests: properties are checked on the same examples every time; `explore` draws new ones."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings

# No deadline: how long an example takes is the machine's affair.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# What a test's client cannot deliver must not land in the spool of the person who runs the tests, nor find theirs.
os.environ["NCMON_SPOOL"] = tempfile.mkdtemp(prefix="ncmon-spool-")
atexit.register(shutil.rmtree, os.environ["NCMON_SPOOL"], ignore_errors=True)

# A shell's job in the background ignores SIGINT, and so would every program that a test starts and then interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
