"""Archives made by hand, good and bad."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A gzip-compressed tar archive of these members."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    """A member with its content."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), link, mode
    return info, content


def archive(files: Mapping[str, str], folders: Sequence[str] = ()) -> bytes:
    """An archive of files with these texts."""
    made = [member(name, kind=tarfile.DIRTYPE) for name in folders]
    return packed(*made, *(member(name, text.encode()) for name, text in files.items()))


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
