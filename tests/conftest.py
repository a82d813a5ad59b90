"""All tests: two processes share them, and real TensorFlow is left to one of these."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

# How long one example takes says more of the machine than of us.
hypothesis.settings.register_profile("nhop", deadline=None)
hypothesis.settings.load_profile("nhop")

# Certificates of the person who runs the tests are none of theirs.
os.environ["XDG_CONFIG_HOME"] = os.devnull
os.environ.pop("NHOP_TLS", None)

# What nohup, a shell's "&" or a build server has us ignore would be ignored by all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for each in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file together, and all that start whole commands: these want a core."""
    for item in items:
        name = "e2e" if item.get_closest_marker("e2e") else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(name))
