"""URLs of data and results: what is one, what opens it, and what its errors mean.

Plain standard library, and imported from both sides as ``nhop_models.contract`` is; fsspec itself is
imported only where a URL is looked at.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import re
from collections.abc import Iterator

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_PASSWORD = re.compile(r"[^/]*://[^/@:]*:[^/@]*@")
_PACKAGES = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hdfs": ("pyarrow", "hdfs"),
}
"""By protocol: the package that opens it, and the extra of nhop that installs it."""


class Trouble(enum.Enum):
    """What kind of failure an error at a URL is."""

    MISSING = "missing"
    DENIED = "denied"
    UNREACHABLE = "unreachable"  # nobody answers there
    PASSING = "passing"  # too slow, or the other side says that it cannot now
    OTHER = "other"


_TROUBLES = {
    Trouble.MISSING: {"FileNotFoundError", "NoSuchBucket", "NoSuchKey"},
    Trouble.DENIED: {
        "PermissionError", "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError",
        "CredentialRetrievalError", "TokenRetrievalError", "SSOTokenLoadError", "RefreshError",
    },
    Trouble.PASSING: {
        "TimeoutError", "FSTimeoutError", "ServerTimeoutError", "ReadTimeoutError", "ConnectTimeoutError",
        "ConnectionClosedError", "IncompleteRead", "IncompleteReadError", "ClientPayloadError",
    },
    Trouble.UNREACHABLE: {
        "EndpointConnectionError", "ClientConnectorError", "ClientConnectorDNSError", "gaierror",
        "ConnectionRefusedError", "ConnectionResetError", "ConnectionError", "ServerDisconnectedError",
        "HTTPClientError",
    },
}  # fmt: skip
# The errors are those of optional packages: known by their names, so that nothing need be imported.

_BUSY = re.compile(r"SlowDown|ServiceUnavailable|InternalError|RequestTimeout|reduce your request rate", re.I)

_WORDS = {
    Trouble.MISSING: "it does not exist: correct the URL",
    Trouble.DENIED: "access is denied: give credentials that may do this, where the library of the protocol "
    "looks for them (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)",
    Trouble.UNREACHABLE: "nobody answers there: look at the network, and at the endpoint (for s3: "
    "AWS_ENDPOINT_URL)",
    Trouble.PASSING: "it answers too slowly, or says that it cannot now: try again later",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """An error in the user's words: ``why`` says the cause and the remedy, after "URL: "."""

    trouble: Trouble
    why: str


def is_url(text: str) -> bool:
    """Whether a location is a URL (``scheme://...``) and not a path."""
    return _URL.match(text) is not None


def is_nearly_url(text: str) -> bool:
    """Whether a path begins as a URL does, but for its slashes: ``s3:/bucket``."""
    protocol, colon, _ = text.partition(":")
    return bool(colon) and protocol.lower() in _PACKAGES and not is_url(text)


def join(url: str, name: str) -> str:
    """The URL of something below a folder."""
    return f"{url.rstrip('/')}/{name}"


def suffix(url: str) -> str:
    """The suffix of the file that a URL names, in lower case, as in ``.csv``; empty where there is none."""
    _, dot, end = file_name(url).rpartition(".")
    return f".{end.lower()}" if dot else ""


def file_name(url: str) -> str:
    """The last part of a URL's path, without a query and what a chain of protocols (``::``) adds."""
    path = url.partition("::")[0].partition("://")[2].partition("?")[0]
    return path.rstrip("/").rpartition("/")[2]


def why_not_opened(url: str) -> str | None:
    """What keeps fsspec on this machine from opening the URL, and the remedy; None where nothing does.

    Does not look whether it is there.
    """
    if _PASSWORD.match(url):
        return "a password does not belong in a URL, which stands in files and logs: leave it out"
    for part in url.split("::"):
        if (problem := _why_no_protocol(part.partition("://")[0])) is not None:
            return problem
    if not url.partition("://")[2].strip("/"):
        return "says only the protocol: write what to open, too"
    return None


def _why_no_protocol(protocol: str) -> str | None:
    import fsspec

    if protocol in _PACKAGES:
        package, extra = _PACKAGES[protocol]
        if importlib.util.find_spec(package) is None:
            return f"{protocol}:// needs the package {package}: pip install 'nhop[{extra}]'"
        return None
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return f"{protocol}:// needs a package that is not installed: {_first_line(error)}"
    except ValueError:
        return f"the protocol {protocol}:// is not known; there are {', '.join(sorted(_PACKAGES))} and others"
    return None


def diagnose(error: BaseException) -> Diagnosis:
    """What an error means that fsspec or one of its packages raised."""
    chain = list(_chain(error))
    names = {parent.__name__ for each in chain for parent in type(each).__mro__}
    if isinstance(error, ImportError):
        return Diagnosis(Trouble.OTHER, f"a package is missing: {_first_line(error)}")
    found = next((trouble for trouble, errors in _TROUBLES.items() if errors & names), Trouble.OTHER)
    if found in (Trouble.OTHER, Trouble.UNREACHABLE) and any(_BUSY.search(str(each)) for each in chain):
        found = Trouble.PASSING
    said = f"{type(error).__name__}: {_first_line(error)}"
    return Diagnosis(found, f"{_WORDS[found]} ({said})" if found in _WORDS else said)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
