"""Names for new studies and their runs."""

from __future__ import annotations

import secrets
import time

ID_LENGTH = 64
"""Characters of an id at most."""


def new_study_id() -> str:
    """Makes an id that sorts by time: ``20261123-134502-3fa9`` (local time and a random end)."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_run_id(study_id: str) -> str:
    """Makes an id for one run of a study, so that agents never take it for another of the same name."""
    return f"{study_id[: ID_LENGTH - 9]}-{secrets.token_hex(4)}"
