"""A GpuInventory that says what a JSON file says, which a test may rewrite at any time.

    {"devices": ["GPU-a", "GPU-b"], "pids": {"GPU-a": [4711]}, "error": "why nothing can be told"}

Every key may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.gpus import GpuDevice, GpusUnreadableError

MEMORY = 8 << 30


def write_gpus(path: Path, *devices: str, pids: Mapping[str, Sequence[int]] | None = None) -> None:
    """Replaces what the inventory says, at once."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps({"devices": devices, "pids": pids or {}}))
    temporary.replace(path)


class FileGpus:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def devices(self) -> Sequence[GpuDevice]:
        return [GpuDevice(uuid, "fake", MEMORY) for uuid in self._read().get("devices", [])]

    def pids(self, uuid: str) -> frozenset[int]:
        return frozenset(self._read().get("pids", {}).get(uuid, []))

    def _read(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._path.read_text())
        if "error" in said:
            raise GpusUnreadableError(said["error"])
        return said
