"""Connections that TLS itself refuses: no handler ever sees them, and gRPC tells only its log.

gRPC's core writes to descriptor 2, in lines of its own. This module has it write down every handshake
(which are few: one a connection), reads that in the event loop, and says in one line who was refused and
why. What else is written there, by C libraries, is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Callable

ENVIRONMENT = {"GRPC_VERBOSITY": "INFO", "GRPC_TRACE": "handshaker"}
"""What gRPC must find when it is first imported."""

PIPE_BYTES = 1 << 20
TOLD_A_SECOND = 10
_STDERR = 2
_GRPC = re.compile(
    rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./]+\.(?:cc|h):\d+\] |=== Source Location Trace|src/core/"
)
_FAILED = re.compile(rb"error=\w+: Ssl handshake failed \([^)]*\): (.*?)(?:: OK)?$")
_PEER = re.compile(rb"endpoint_peer_address=(?:ipv4:|ipv6:)?([^,]+), .*grpc\.internal\.server_credentials=")
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
)


def enable() -> None:
    """To be called before gRPC is imported for the first time."""
    os.environ.update(ENVIRONMENT)


class HandshakeLog:
    """Between ``open`` and ``close`` refused connections are told. Needs ``enable`` before.

    Python's stderr goes where it went before; only what is written to the descriptor itself is read here,
    and lost where it comes faster than it is read.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._reader = Reader(self._refused)
        self._loop = asyncio.get_running_loop()
        self._second = 0
        self._told = 0
        self._original = -1
        self._pipe = -1

    def open(self) -> None:
        """Takes descriptor 2; OSError."""
        sys.stderr.flush()
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a limit of the system: the usual size has to do
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._original = fcntl.fcntl(_STDERR, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(write, _STDERR)
        os.close(write)
        self._pipe = read
        self._loop.add_reader(read, self._read)

    def close(self) -> None:
        """Gives descriptor 2 back."""
        if self._pipe < 0:
            return
        self._loop.remove_reader(self._pipe)
        self._read()
        os.dup2(self._original, _STDERR)
        os.close(self._pipe)
        os.close(self._original)
        self._pipe = -1

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, PIPE_BYTES)
        except BlockingIOError:
            return
        for line in self._reader.take(data):
            with contextlib.suppress(OSError):
                os.write(self._original, line + b"\n")

    def _refused(self, peer: str, reason: str) -> None:
        second = int(self._loop.time())
        if second != self._second:
            if self._told > TOLD_A_SECOND:
                self._tell(f"refused {self._told - TOLD_A_SECOND} more connections within a second")
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= TOLD_A_SECOND:
            self._tell(f"refused a connection from {peer}: {reason}")


class Reader:
    """Finds refused handshakes in what gRPC writes; ``refused`` is called with the peer and the reason."""

    def __init__(self, refused: Callable[[str, str], object]) -> None:
        self._refused = refused
        self._rest = b""
        self._reason = ""

    def take(self, data: bytes) -> list[bytes]:
        """Takes a piece of the text; returns the whole lines in it that are not gRPC's."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > PIPE_BYTES:
            self._rest = b""
        return [line for line in lines if not self._is_grpc(line)]

    def _is_grpc(self, line: bytes) -> bool:
        failed = _FAILED.search(line)
        if failed is not None and b"CallNextHandshaker" in line:
            self._reason = explain(failed[1].decode(errors="replace"))
        elif line.startswith(_ARGUMENTS):
            peer = _PEER.search(line)
            if peer is not None and self._reason:
                self._refused(peer[1].decode(errors="replace"), self._reason)
            self._reason = ""
            return True
        return not line or _GRPC.match(line) is not None


def explain(error: str) -> str:
    """Why a handshake failed, in the user's words."""
    for sign, words in _REASONS:
        if sign in error:
            return words
    return error.rpartition("OPENSSL_internal:")[2] or error
