"""``nhop-coordinator logs``: what a task of a trial printed, from a running study or as it was kept."""

from __future__ import annotations

import codecs
import csv
import io
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.announcement import Announcement
from coordinator.directory import StudyDirectory
from coordinator.errors import ConfigError, NhopError, UsageError
from coordinator.kept_logs import LOGS_FOLDER, kept_logs, why_not_kept
from nhop_models.contract import TaskId, printable

if TYPE_CHECKING:
    from nhop.client import Client, LogPart

ANNOUNCEMENT_SECONDS = 10.0
"""How long a coordinator that runs is given to say where it can be reached."""

RUNS = Path("runs")
TRIALS_FILE = "trials.csv"
MARKS = ("config.yaml", "study.db")
"""Files by which the output directory of a study is known."""


@click.command("logs", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("trial", type=click.IntRange(min=1))
@click.argument("task", default="worker/0")
@click.option("--follow", "-f", is_flag=True, help="Go on, with new attempts too, until the trial has ended.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the study; the newest of runs/ by default."
)
@click.option("--serve", metavar="ADDRESS", help="Ask the coordinator that serves there.")
@click.option(
    "--tls",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --serve: a client's certificate, or as NHOP_TLS says; ~/.config/nhop/certs/client by default, "
    "but for loopback.",
)
@click.option("--insecure", is_flag=True, help="With --serve off loopback: without TLS.")
@click.option("--study", metavar="ID", help="Which study of that coordinator, if it has several.")
def logs(
    trial: int,
    task: str,
    follow: bool,
    output: Path | None,
    serve: str | None,
    tls: Path | None,
    insecure: bool,
    study: str | None,
) -> int:
    """Show what a task of a trial printed: of the study that runs, or the kept log of a failed one.

    TASK is worker/0 (the chief, by default), worker/1, ps/0 ... Logs of tasks that failed are kept.
    """
    from nhop.client import Client

    wanted = _parse(task)
    if serve is None and study is not None:
        raise UsageError("--study goes with --serve: a folder (--output) has one study")
    if serve is None and (tls is not None or insecure):
        raise UsageError(f"{'--insecure' if insecure else '--tls'} goes with --serve")
    if serve is not None and tls is None and os.environ.get("NHOP_TLS"):
        tls = Path(os.environ["NHOP_TLS"])
    if serve is not None and output is not None:
        raise UsageError("--output and --serve: one of them says which study is meant")
    _Printer(trial, wanted).show(
        _served(Client(serve, tls=tls, insecure=insecure), study or "", trial, wanted, follow=follow)
        if serve is not None
        else _of_folder(output or _newest_run(), trial, wanted, follow=follow)
    )
    return 0


class _Printer:
    """Writes parts to stdout, each attempt behind a line on stderr."""

    def __init__(self, trial: int, task: TaskId) -> None:
        self._trial = trial
        self._task = task

    def show(self, parts: Iterable[LogPart]) -> None:
        attempt, decoder = 0, _decoder()
        for part in parts:
            if part.attempt != attempt:
                self._write(decoder.decode(b"", final=True))
                attempt, decoder = part.attempt, _decoder()
                where = f" on {part.host}" if part.host else ""
                line = f"== trial {self._trial}, attempt {attempt}, {self._task}{where} =="
                click.echo(printable(line), err=True)
            self._write(decoder.decode(part.data))
        self._write(decoder.decode(b"", final=True))

    def _write(self, text: str) -> None:
        if text:
            click.echo(printable(text), nl=False)  # which flushes: who follows sees it at once


def _decoder() -> io.IncrementalNewlineDecoder:
    """Bytes to text whatever they are; a progress bar's carriage returns become new lines."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return io.IncrementalNewlineDecoder(utf8, translate=True)


def _parse(text: str) -> TaskId:
    try:
        return TaskId.parse(text)
    except ValueError:
        raise UsageError(f"TASK {text!r} must be worker/N or ps/N, as worker/0 for the chief") from None


def _served(client: Client, study: str, trial: int, task: TaskId, *, follow: bool) -> Iterator[LogPart]:
    from nhop.client import StudyNotFoundError

    with client:
        try:
            yield from client.log_parts(study, trial, str(task), follow=follow)
        except StudyNotFoundError as error:
            raise UsageError(str(error)) from error
        except ConfigError as error:  # what the request names as study_id is --study here
            problems = [f"{p.key.replace('study_id', '--study')}: {p.message}" for p in error.problems]
            raise UsageError("; ".join(problems)) from error


def _of_folder(folder: Path, trial: int, task: TaskId, *, follow: bool) -> Iterator[LogPart]:
    """From the coordinator that writes to the folder, if one does; else what was kept there."""
    running = _find_coordinator(folder)
    if running is not None:
        from nhop.client import Client, UnreachableError

        begun = False
        try:
            for part in _served(Client(running.address), running.study_id, trial, task, follow=follow):
                begun = True
                yield part
            return
        except UnreachableError as error:
            if begun:
                raise NhopError(
                    f"{folder}: its coordinator has ended in the middle of the log; what it kept: "
                    f"{folder / LOGS_FOLDER}"
                ) from error
    yield from _kept(folder, trial, task)


def _find_coordinator(folder: Path) -> Announcement | None:
    """Who writes to the folder; one that has just begun to is given time to say so."""
    deadline = time.monotonic() + ANNOUNCEMENT_SECONDS
    while (found := Announcement.read(folder)) is None:
        if not StudyDirectory.in_use(folder) or time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return found


def _kept(folder: Path, trial: int, task: TaskId) -> Iterator[LogPart]:
    from nhop.client import LogPart

    if not any((folder / name).exists() for name in MARKS):
        raise UsageError(f"{folder}: is not the output directory of a study; name one with --output")
    kept = kept_logs(folder / LOGS_FOLDER, trial)
    found = {attempt: path for (attempt, owner), path in kept.items() if owner == task}
    if not found:
        trials = _count_trials(folder)
        if trials is not None and trial > trials:
            raise UsageError(f"{folder}: there is no trial {trial}, the study had {trials}")
        raise UsageError(f"{folder}: {why_not_kept(trial, task, kept)}")
    for attempt, path in found.items():
        try:
            yield LogPart(attempt, "", path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _count_trials(folder: Path) -> int | None:
    """Trials of a study that has ended; None where that is not known."""
    try:
        with (folder / TRIALS_FILE).open(newline="") as file:
            return sum(1 for _ in csv.reader(file)) - 1
    except (OSError, ValueError, csv.Error):
        return None


def _newest_run() -> Path:
    """The run in ``runs/`` that was begun last, one that still runs before all others."""
    found = []
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        times = [(folder / name).stat().st_mtime for name in MARKS if (folder / name).exists()]
        if times:
            # One that was killed has left its announcement.
            runs = Announcement.read(folder) is not None and StudyDirectory.in_use(folder)
            found.append((runs, max(times), folder))
    if not found:
        raise UsageError(f"{RUNS}: there is no run; name the folder of a study with --output")
    return max(found)[2]
