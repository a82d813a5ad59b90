"""Folders that coordinators sent: users' code, and small data, each kept under the digest of its archive.

    <state-dir>/bundles/<digest>/    an unpacked folder; it has this name only once it is whole
    <state-dir>/bundles/.*           what is on its way, or about to be deleted
    <state-dir>/bundles/.boot        the boot of the host in which they were written

What is least recently used goes where there is no room for more, or the disk is full, but never what an
attempt uses that has not ended. Everything here can be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agent.archive import NO_ROOM, ArchiveLimits, too_large, unpack
from agent.artifacts import GivenFile
from agent.leases import NotEnoughError
from agent.task_user import TaskUser
from nhop_models.contract import TaskSpec, write_atomically

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FOLDER = "bundles"
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_CACHE_BYTES = 4 << 30
"""Bytes of all bundles together, as they are unpacked."""
_HIDDEN = "."
_BOOT_FILE = ".boot"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NoBundleError(Exception):
    """There is no bundle of that digest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The digests of an attempt's bundles; empty: none."""

    code: str = ""
    data: str = ""

    def digests(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(digest for digest in (self.code, self.data) if digest)


class Bundles:
    """The cache of one agent. ``in_use`` gives the digests that must stay, ``user`` is that of the tasks.

    A user of their own may read bundles, and never write there.
    """

    def __init__(
        self,
        folder: Path,
        in_use: Callable[[], Collection[str]],
        limits: ArchiveLimits | None = None,
        most: int = MAX_CACHE_BYTES,
        user: TaskUser | None = None,
    ) -> None:
        self._user = user
        self._folder = folder
        self._in_use = in_use
        self.limits = limits or ArchiveLimits()
        self._most = most
        self._filling = asyncio.Lock()

    def clean(self) -> None:
        """Makes the folder, and removes what an earlier agent left half-made; raises OSError.

        A full disk is none: what an earlier agent left may have to be told before there is room again.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        mark = self._folder / _BOOT_FILE
        boot = _BOOT_ID.read_text()
        # Otherwise the host may have gone down before all that was written was on the disk.
        same = mark.exists() and mark.read_text() == boot
        for path in self._folder.iterdir():
            if path != mark and (path.name.startswith(_HIDDEN) or not same):
                _remove(path)
            elif path != mark:
                self._let_in(path)
        if not same:
            try:
                write_atomically(mark, boot)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                logger.error("%s: %s; bundles will be sent again to the next agent", mark, error.strerror)  # noqa: TRY400

    # --- what attempts use --------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        """Whether the bundle is here; it counts as used now."""
        try:
            os.utime(self._folder / digest)
        except OSError:
            return False
        return True

    def furnish(self, spec: TaskSpec, wanted: Wanted) -> TaskSpec:
        """The spec with the places of its bundles; NoBundleError where one is not here."""
        missing = [digest for digest in wanted.digests() if not self.has(digest)]
        if missing:
            raise NoBundleError(f"there is no bundle {' nor '.join(missing)} here (any more): send it again")
        if wanted.code:
            code = str(self._folder / wanted.code)
            spec = dataclasses.replace(
                spec,
                python_path=(code, *spec.python_path),
                working_directory=spec.working_directory or code,
            )
        if wanted.data:
            spec = dataclasses.replace(spec, data_directory=str(self._folder / wanted.data))
        return spec

    # --- what comes ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def receive(self, digest: str, size: int) -> AsyncIterator[GivenFile]:
        """A file for the archive of ``size`` bytes, which goes when this ends.

        Raises NotEnoughError where it is too large, or the disk is full.
        """
        if size > self.limits.packed:
            raise too_large(f"it has {size} bytes, {self.limits.packed} are the most", self.limits.packed)
        with contextlib.ExitStack() as stack:

            async def begin() -> GivenFile:
                return stack.enter_context(GivenFile(self._folder, digest, size))

            yield await self._with_disk(begin)

    async def keep(self, file: GivenFile, digest: str) -> None:
        """Unpacks a whole archive, and gives the folder its name.

        Raises ArchiveError, NotEnoughError where it is too large or there is no room, OSError.
        """
        folder = self._folder / f"{_HIDDEN}{digest}.{secrets.token_hex(8)}"
        stopped = threading.Event()
        try:
            await self._with_disk(
                lambda: asyncio.to_thread(unpack, file.path, digest, folder, self.limits, stopped)
            )
            async with self._filling:
                if not self.has(digest):  # another upload of the same digest may have been faster
                    await self._make_room(await asyncio.to_thread(_size, folder))
                    self._let_in(folder)
                    folder.rename(self._folder / digest)
                    self.has(digest)
        finally:
            stopped.set()  # the thread, where it is not through, removes what it has made
            await asyncio.shield(asyncio.to_thread(_remove, folder))

    def _let_in(self, bundle: Path) -> None:
        if self._user is not None:
            self._user.let_in(bundle, 0o750)

    async def _make_room(self, wanted: int) -> None:
        """Removes what was least recently used until so many bytes may come."""
        sizes = await asyncio.to_thread(self._sizes)
        # From here to the renames without a pause: no attempt may come to use one of them meanwhile.
        old = _outdated(sizes, self._in_use(), wanted + sum(size for _, size in sizes.values()) - self._most)
        if old is None:
            message = f"the bundles that attempts use leave no room for {wanted} bytes more of {self._most}"
            raise NotEnoughError("BUNDLE", wanted, 0, message)
        await self._discard(old)

    async def _with_disk(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """What ``work`` returns; where the disk is full, bundles go, ever more of them, until it is not."""
        number = 1
        while True:
            try:
                return await work()
            except NotEnoughError as error:
                if error.resource != "DISK":
                    raise
                sizes = await asyncio.to_thread(self._sizes)
                pinned = self._in_use()
                old = [digest for digest in _longest_unused(sizes) if digest not in pinned][:number]
                if not old:
                    raise
                await self._discard(old)
                number *= 2

    async def _discard(self, digests: Iterable[str]) -> None:
        """Removes bundles; whoever wants one from now on does not find it."""
        trash = []
        for digest in digests:
            logger.info("bundle %s is removed: it was not used for the longest time", digest)
            path = self._folder / f"{_HIDDEN}{digest}.{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                trash.append((self._folder / digest).rename(path))
        # All of it, even if nobody waits for that any more.
        await asyncio.shield(asyncio.to_thread(_remove, *trash))

    def _sizes(self) -> dict[str, tuple[float, int]]:
        """When each bundle was used last, and its bytes."""
        found = {}
        for path in self._folder.iterdir():
            if DIGEST.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    found[path.name] = (path.stat().st_mtime, _size(path))
        return found


def _outdated(
    sizes: Mapping[str, tuple[float, int]], pinned: Collection[str], excess: int
) -> list[str] | None:
    """The bundles that have to go, the longest unused first; None where that is not enough."""
    chosen = []
    for digest in _longest_unused(sizes):
        if excess <= 0:
            break
        if digest not in pinned:
            chosen.append(digest)
            excess -= sizes[digest][1]
    return chosen if excess <= 0 else None


def _longest_unused(sizes: Mapping[str, tuple[float, int]]) -> list[str]:
    """The bundles, what was not used for the longest time first."""
    return sorted(sizes, key=lambda digest: sizes[digest][0])


def _size(folder: Path) -> int:
    """Bytes of all files; of what vanishes meanwhile none."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118  (of 100,000 files)
    return total


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
