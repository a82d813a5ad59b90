"""Results at a URL: it is claimed before a study starts, and the result files are copied to it at the end.

A study itself always runs in a folder of this machine, for SQLite needs one. fsspec, and the package
of the protocol, are imported once a URL is used. They block, so they have threads of their own, and a
time limit: one that hangs is left behind, and ends with the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.config.keys import Keys
from coordinator.directory import AGENT_FOLDER, DATABASE_FILE
from coordinator.errors import StudyFailedError, UsageError
from coordinator.report.results import CONFIG_FILE, SUMMARY_FILE
from coordinator.waiting import in_thread
from nhop_models import urls

CLAIM_LIMIT = 60.0
"""Seconds to look at a URL and to write the first file there."""
COPY_LIMIT = 60.0
"""Seconds for the copy at the end, and one more for each SLOWEST bytes."""
SLOWEST = 1 << 20

_WITH_FOLDERS = {"file", "local", "hdfs", "webhdfs", "sftp", "ssh", "ftp", "smb", "memory"}
# The others are object stores: they need no folders, and would make a bucket of a misspelt name.
_LEFT_OUT = (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm", f"{DATABASE_FILE}-journal")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the results of a study go: a folder of this machine, and a URL to which they are copied."""

    folder: Path
    url: str | None = None

    @classmethod
    def of(cls, output: str | Path | None, train_log_dir: str, study_id: str) -> Place:
        """From ``--output``, or without it ``train_log_dir``; each a folder or a URL."""
        default = Path(Keys.model_fields["train_log_dir"].default) / study_id
        if output is not None:
            return cls(default, str(output)) if urls.is_url(str(output)) else cls(Path(output))
        if urls.is_url(train_log_dir):
            return cls(default, urls.join(train_log_dir, study_id))
        return cls(Path(train_log_dir) / study_id)


class RemoteFolder:
    """A folder at a URL for the results of one study; UsageError where nothing here opens such a URL."""

    def __init__(self, url: str, study_id: str) -> None:
        self.url = url
        self._mark = f"# study {study_id}\n"
        if (problem := urls.why_not_opened(url)) is not None:
            raise UsageError(f"{url}: {problem}")

    async def check(self) -> None:
        """Raises UsageError where the URL cannot be read, or holds a study."""
        await self._ask(self._check)

    async def claim(self, config_yaml: str) -> str:
        """Writes the configuration there, and returns the URL.

        Raises UsageError where that cannot be done, or the URL holds a study.
        """

        def work() -> None:
            self._check()
            filesystem, path = self._open()
            self._make_folders(filesystem, [path])
            filesystem.pipe_file(f"{path}/{CONFIG_FILE}", (self._mark + config_yaml).encode())

        await self._ask(work)
        return self.url

    async def release(self) -> None:
        """Removes what ``claim`` wrote, for a study that has not begun."""

        def work() -> None:
            filesystem, path = self._open()
            if self._is_ours(filesystem, path):
                filesystem.rm_file(f"{path}/{CONFIG_FILE}")

        with contextlib.suppress(Exception):  # there is another error to tell, and no harm in the file
            await in_thread(work, CLAIM_LIMIT)

    async def copy(self, folder: Path) -> None:
        """Copies the result files, summary.json last; StudyFailedError where that cannot be done."""
        files = _result_files(folder)
        size = sum(file.stat().st_size for file in files)
        limit = COPY_LIMIT + size / SLOWEST
        try:
            await in_thread(lambda: self._copy(folder, files), limit)
        except TimeoutError:
            why = f"not done after {limit:.0f} s, for {len(files)} files of {size} bytes: look at the network"
        except Exception as error:  # noqa: BLE001 - of any library: whatever it is, the results are here
            why = urls.diagnose(error).why if not isinstance(error, _TakenError) else str(error)
        else:
            return
        raise StudyFailedError(
            f"the results could not be copied to {self.url}: {why}; all of them are in {folder}"
        )

    async def _ask(self, work: Callable[[], None]) -> None:
        try:
            await in_thread(work, CLAIM_LIMIT)
        except UsageError:
            raise
        except TimeoutError:
            why = f"no answer for {CLAIM_LIMIT:.0f} s: look at the network"
        except Exception as error:  # noqa: BLE001 - each library has errors of its own
            why = urls.diagnose(error).why
        else:
            return
        raise UsageError(f"{self.url}: cannot be used for the results: {why}; or choose another --output")

    def _check(self) -> None:
        filesystem, path = self._open()
        for name in (SUMMARY_FILE, DATABASE_FILE):
            # Not exists(), which takes every error for a no.
            with contextlib.suppress(FileNotFoundError):
                filesystem.info(f"{path}/{name}")
                raise UsageError(f"{self.url}: already holds a study ({name}); choose another --output")

    def _copy(self, folder: Path, files: Sequence[Path]) -> None:
        filesystem, path = self._open()
        if not self._is_ours(filesystem, path):
            raise _TakenError(
                f"its {CONFIG_FILE} is that of another study now, which was put there meanwhile"
            )
        targets = [f"{path}/{file.relative_to(folder).as_posix()}" for file in files]
        self._make_folders(filesystem, [target.rpartition("/")[0] for target in targets])
        filesystem.put([str(file) for file in files[:-1]], targets[:-1])
        # Last: who sees the summary finds the other files complete.
        filesystem.put([str(files[-1])], targets[-1:])

    def _is_ours(self, filesystem: Any, path: str) -> bool:
        try:
            text: bytes = filesystem.cat_file(f"{path}/{CONFIG_FILE}")
        except FileNotFoundError:
            return True
        return text.startswith(self._mark.encode())

    def _open(self) -> tuple[Any, str]:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(self.url)
        filesystem.invalidate_cache()
        return filesystem, path.rstrip("/")

    def _make_folders(self, filesystem: Any, folders: Sequence[str]) -> None:
        if self.url.partition("://")[0] in _WITH_FOLDERS:
            for folder in sorted(set(folders)):
                filesystem.makedirs(folder, exist_ok=True)


class _TakenError(Exception):
    """Another study is at the URL."""


def _result_files(folder: Path) -> list[Path]:
    """What a study has left, by path, without what is hidden, SQLite's or an agent's; the summary last."""
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not file.is_symlink()
        and file.name not in _LEFT_OUT
        and (parts := file.relative_to(folder).parts)[0] != AGENT_FOLDER
        and not any(part.startswith(".") for part in parts)
    ]
    return sorted(found, key=lambda file: file == folder / SUMMARY_FILE)
