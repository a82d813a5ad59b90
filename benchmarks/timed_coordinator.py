"""``nhop-coordinator`` with a stopwatch: ``python -m benchmarks.timed_coordinator OUT ARGUMENTS ...``.

Writes to OUT, as JSON: seconds from each command's being issued to its outcome's being known, wall and
CPU seconds of the study (from its links' being connected to its end), resident memory before and after.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil

from coordinator import cli, process, runtime
from coordinator.domain import Study
from coordinator.instructions import Command
from coordinator.study_run import StudyRun

measured: dict[str, Any] = {"commands": []}


class TimedRun(StudyRun):
    """A study whose commands are timed."""

    async def run(self) -> Study:
        measured["rss_connected"] = psutil.Process().memory_info().rss
        wall, cpu = time.monotonic(), time.process_time()
        study = await super().run()
        measured["seconds"] = time.monotonic() - wall
        measured["cpu_seconds"] = time.process_time() - cpu
        measured["rss_ended"] = psutil.Process().memory_info().rss
        return study

    def _execute(self, command: Command) -> Coroutine[Any, Any, None]:  # type: ignore[override]
        return self._timed(super()._execute(command), time.perf_counter())

    async def _timed(self, work: Coroutine[Any, Any, None], issued: float) -> None:
        await work
        measured["commands"].append(time.perf_counter() - issued)


def main(out: Path, arguments: list[str]) -> int:
    runtime.StudyRun = TimedRun  # type: ignore[misc]
    process.take_over()
    begun = time.monotonic()
    status = cli.run(arguments)
    measured["whole_seconds"] = time.monotonic() - begun
    out.write_text(json.dumps(measured))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
