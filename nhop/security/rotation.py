"""A TLS folder in use: its files are read again when they change, so that no restart is needed."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path

from nhop.security.errors import CertificateError
from nhop.security.folder import FILES, TlsFiles, load
from nhop.security.identity import Role

CHECK_SECONDS = 2.0
"""Between two looks at the files."""

REMINDER = datetime.timedelta(days=1)
"""Between two announcements of the same thing."""

Tell = Callable[[str], object]


class Rotation:
    """The newest usable files of a folder. ``generation`` grows whenever they have changed.

    Raises CertificateError, at the start only, where they cannot be used; see ``folder.load``.
    """

    def __init__(
        self, folder: Path, *roles: Role, now: Callable[[], datetime.datetime] | None = None
    ) -> None:
        self.folder = folder.absolute()
        self._roles = frozenset(roles)
        self._now = now or _utc_now
        self._seen = self._fingerprint()
        self.files: TlsFiles = load(self.folder, self._roles, self._now())
        self.generation = 1
        self._reminded: datetime.datetime | None = None

    def look(self) -> bool:
        """Reads the files again if they have changed; whether there are new ones. CertificateError.

        Files that cannot be used change nothing, and are read again the next time.
        """
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return False
        files = load(self.folder, self._roles, self._now())
        # Only now: what is being written just then is looked at once more.
        self._seen = fingerprint
        if files == self.files:
            return False
        self.files = files
        self.generation += 1
        self._reminded = None
        return True

    @property
    def ends_soon(self) -> bool:
        """Whether it is time to issue a new certificate."""
        return self.files.ends_soon(self._now())

    def expiry_notice(self) -> str:
        """What to say of a certificate that ends soon, or has ended; empty where there is nothing to say.

        Once a day.
        """
        now, end = self._now(), self.files.end
        if not self.files.ends_soon(now) or (self._reminded and now - self._reminded < REMINDER):
            return ""
        self._reminded = now
        what = f"the certificate in {self.folder}"
        remedy = "issue it again with nhop-coordinator certs issue; no restart is needed"
        if now >= end:
            return f"{what} has expired on {end:%Y-%m-%d}: new connections are refused; {remedy}"
        return f"{what} ends on {end:%Y-%m-%d %H:%M} UTC, {describe(end - now)} from now; {remedy}"

    async def follow(
        self, tell: Tell, changed: Callable[[], None] = lambda: None, seconds: float | None = None
    ) -> None:
        """Until cancelled: looks, says what is new or amiss, and calls ``changed`` for new files.

        ``seconds`` from one look to the next; None: CHECK_SECONDS.
        """
        seen = said = ""
        while True:
            notice = self.expiry_notice()
            if notice:
                tell(notice)
            await asyncio.sleep(CHECK_SECONDS if seconds is None else seconds)
            problem = ""
            try:
                new = await asyncio.to_thread(self.look)
            except CertificateError as error:
                new, problem = False, str(error)
            if new:
                tell(f"the certificate in {self.folder} was read again: it ends on {self.files.end:%Y-%m-%d}")
                changed()
            if not problem:
                said = ""
            # What is being replaced just then is whole at the next look: said when it is seen twice.
            if problem and problem == seen != said:
                tell(f"new certificates cannot be used, the earlier ones stay: {problem}")
                said = problem
            seen = problem

    def _fingerprint(self) -> tuple[tuple[int, int, int, int] | None, ...]:
        found: list[tuple[int, int, int, int] | None] = []
        for name in FILES:
            try:
                status = (self.folder / name).stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode))
        return tuple(found)


def describe(time: datetime.timedelta) -> str:
    """A span of time in words, such as ``12 days``."""
    if time >= datetime.timedelta(days=2):
        return f"{time.days} days"
    hours = max(1, round(time.total_seconds() / 3600))
    return f"{hours} hour{'s' * (hours > 1)}"


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
