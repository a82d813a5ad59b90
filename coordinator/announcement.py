"""``coordinator.json`` of an output directory: where the coordinator that writes there can be reached."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from nhop_models.contract import write_atomically

ANNOUNCEMENT_FILE = "coordinator.json"


@dataclass(frozen=True, slots=True)
class Announcement:
    """The address at which StudyService answers for this study, as long as the study runs."""

    address: str
    study_id: str

    def write(self, folder: Path) -> None:
        """Puts it there; OSError."""
        write_atomically(folder / ANNOUNCEMENT_FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What a coordinator says there; None where none does (any more)."""
        try:
            values = json.loads((folder / ANNOUNCEMENT_FILE).read_text())
            return cls(str(values["address"]), str(values["study_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def remove(folder: Path) -> None:
        """Takes it away."""
        with contextlib.suppress(OSError):  # whoever reads it finds out that nobody answers
            (folder / ANNOUNCEMENT_FILE).unlink(missing_ok=True)
