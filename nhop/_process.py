"""What every command of ours does first."""

from __future__ import annotations

import os


def open_standard_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed on /dev/null.

    Else the next file or socket would take their place, and what is printed would go there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one
