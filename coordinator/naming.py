"""Names for new studies."""

from __future__ import annotations

import secrets
import time


def new_study_id() -> str:
    """Makes an id that sorts by time: ``20261123-134502-3fa9`` (local time and a random end)."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
