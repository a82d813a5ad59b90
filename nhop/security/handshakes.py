"""Connections that TLS itself refuses: no handler ever sees them, and gRPC tells only its log.

gRPC's core writes to descriptor 2, in lines of its own. This module has it write down every handshake
(which are few: some lines a connection), reads that in the event loop, and says in one line who was refused
and why. What else is written there, by C libraries, is passed on.

Some of the text is a stranger's: the name of the server that it asks for is in an error of gRPC's, new lines
included, so that whole lines may be made up. What is passed on is therefore marked and made printable, and
refusals count only with the address in memory of our credentials, which nobody outside knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TextIO

from nhop.security.telling import Sparing, readable

ENVIRONMENT = {"GRPC_VERBOSITY": "INFO", "GRPC_TRACE": "handshaker"}
"""What gRPC must find when it is first imported."""

PIPE_BYTES = 1 << 20
PASSED_ON = 1_000
"""Characters of a line of others that are passed on."""

_STDERR = 2
_GRPC = re.compile(
    rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./]+\.(?:cc|h):\d+\] |=== Source Location Trace|src/core/"
)
_STEP = re.compile(rb"handshaker\.cc:\d+\] CallNextHandshakerLocked: error=(?!OK )\w+: (.*?)(?:: OK)?$")
_TLS = re.compile(rb"Ssl handshake failed \([^)]*\): (.*)|(Cannot check peer: .*)")
_PEER = re.compile(rb"endpoint_peer_address=([^,]+), ")
_CREDENTIALS = re.compile(rb"grpc\.internal\.server_credentials=(0x[0-9a-f]+)")
_ARGUMENTS = b" shutdown="
_REASONS = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it showed no certificate"),
    ("certificate has expired", "its certificate has expired"),
    ("certificate is not yet valid", "its certificate is not valid yet"),
    ("unsupported certificate purpose", "its certificate is not for calling"),
    ("unable to get local issuer certificate", "its certificate is of another authority"),
    ("self signed certificate", "its certificate is of no authority"),
    ("self-signed certificate", "its certificate is of no authority"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
    ("HTTP_REQUEST", "it does not speak TLS"),
    ("UNSUPPORTED_PROTOCOL", "it speaks an old version of TLS only"),
    ("BAD_PACKET_LENGTH", "it broke the handshake off; does it trust our certificate, by this name?"),
    ("NO_SHARED_CIPHER", "it speaks no cipher that is safe"),
    ("ALPN", "it does not ask for HTTP/2 within TLS"),
)


def enable() -> None:
    """To be called before gRPC is imported for the first time."""
    os.environ.update(ENVIRONMENT)


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for other processes, which nobody reads as this one: what ``enable`` set is off."""
    if not ENVIRONMENT.items() <= environment.items():
        return dict(environment)
    kept = {name: value for name, value in environment.items() if name not in ENVIRONMENT}
    return {**kept, "GRPC_VERBOSITY": "NONE"}


class HandshakeLog:
    """Between ``open`` and ``close`` refused connections are told. Needs ``enable`` before.

    Python's stderr goes where it went before; only what C libraries write to the descriptor itself is read
    here, and lost where it comes faster than it is read.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = Sparing(tell, "more connections were refused")
        self._pass_on = Sparing(tell, "more lines were written to stderr")
        self._reader = Reader(self._refused)
        self._loop = asyncio.get_running_loop()
        self._pipe = -1
        self._stderr: TextIO | None = None
        self._own: TextIO | None = None

    def open(self) -> None:
        """Takes descriptor 2; OSError."""
        self._stderr = sys.stderr
        self._stderr.flush()
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a limit of the system: the usual size has to do
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        original = fcntl.fcntl(_STDERR, fcntl.F_DUPFD_CLOEXEC, 3)
        self._own = open(original, "w", buffering=1, errors="backslashreplace")  # noqa: PTH123, SIM115
        if _descriptor(self._stderr) == _STDERR:
            _replace_stderr(self._own)
        os.dup2(write, _STDERR)
        os.close(write)
        self._pipe = read
        self._loop.add_reader(read, self._read)

    def close(self) -> None:
        """Gives descriptor 2 back."""
        if self._own is None or self._stderr is None:
            return
        self._loop.remove_reader(self._pipe)
        self._read()
        os.dup2(self._own.fileno(), _STDERR)
        if sys.stderr is self._own:
            _replace_stderr(self._stderr)
        self._own.close()
        os.close(self._pipe)
        self._own = None

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, PIPE_BYTES)
        except BlockingIOError:
            return
        for line in self._reader.take(data):
            self._pass_on(f"written to stderr: {printable(line)}")

    def _refused(self, peer: str, reason: str) -> None:
        self._tell(f"refused a connection from {peer}: {reason}")


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # none at all, as within tests
        return -1


def _replace_stderr(stream: TextIO) -> None:
    before, sys.stderr = sys.stderr, stream
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(stream)


class Reader:
    """Finds refused handshakes in what gRPC writes; ``refused`` is called with the peer and the reason."""

    def __init__(self, refused: Callable[[str, str], object]) -> None:
        self._refused = refused
        self._rest = b""
        self._reason = ""
        self._credentials = b""

    def take(self, data: bytes) -> list[bytes]:
        """Takes a piece of the text; returns the whole lines in it that are not gRPC's."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > PIPE_BYTES:
            self._rest = b""
        return [line for line in lines if not self._is_grpc(line)]

    def _is_grpc(self, line: bytes) -> bool:
        if not self._credentials and (found := _CREDENTIALS.search(line)) is not None:
            # Written down before anything of the first connection is read.
            self._credentials = found[1]
        step = _STEP.search(line)
        if step is not None:
            failed = _TLS.search(step[1])
            self._reason = "" if failed is None else explain(failed[1] or failed[2])
        elif line.startswith(_ARGUMENTS):
            peer, ours = _PEER.search(line), _CREDENTIALS.search(line)
            if peer is not None and ours is not None and ours[1] == self._credentials and self._reason:
                self._refused(readable(peer[1].decode(errors="replace")), self._reason)
            self._reason = ""
            return True
        return not line or _GRPC.match(line) is not None


def explain(error: bytes) -> str:
    """Why a handshake failed, in the user's words."""
    text = printable(error)
    for sign, words in _REASONS:
        if sign in text:
            return words
    return text.rpartition("OPENSSL_internal:")[2] or text


def printable(line: bytes) -> str:
    """A line as it can be shown on a terminal, cut off where it is very long."""
    text = line.decode(errors="replace")[:PASSED_ON]
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
