"""What gRPC writes of handshakes, by gRPC itself: a new version that writes it in another way fails here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from nhop.security.handshakes import Reader, explain, printable
from tests.certificates import AGENT, COORDINATOR, Office, credentials, with_authority_of
from tests.contract.harness import DEADLINE, ROOT

SERVER = """
import os, sys
from pathlib import Path
from nhop.security.handshakes import enable
enable()
import asyncio, grpc
from nhop.security.identity import Role
from nhop.security.rotation import Rotation
from nhop.security.server import LIMITS, server_credentials

async def main():
    server = grpc.aio.server(options=LIMITS)
    port = server.add_secure_port(sys.argv[2], server_credentials(Rotation(Path(sys.argv[1]), Role.AGENT)))
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)

asyncio.run(main())
"""


class Server:
    """gRPC with its log in a file."""

    def __init__(self, office: Office, folder: Path, listen: str) -> None:
        self.office = office
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, office.issue(AGENT), listen],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def close(self) -> None:
        try:
            self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    async def call(self, folder: Path | None, host: str = "127.0.0.1") -> None:
        """Tries once to call it."""
        target = f"{host}:{self.port}"
        channel = (
            grpc.aio.insecure_channel(target)
            if folder is None
            else grpc.aio.secure_channel(target, credentials(folder))
        )
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/x/y")(b"", timeout=DEADLINE)

    async def refusals(self, count: int) -> tuple[list[tuple[str, str]], list[bytes]]:
        """Waits for so many; they, and lines that are not gRPC's."""
        async with asyncio.timeout(DEADLINE):
            while True:
                found: list[tuple[str, str]] = []
                reader = Reader(lambda peer, reason: found.append((peer, reason)))  # noqa: B023
                rest = reader.take(self.log.read_bytes())
                if len(found) >= count:
                    return found, rest
                await asyncio.sleep(0.02)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "office")


@pytest.mark.parametrize(("listen", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")])
async def test_what_grpc_writes_is_understood(office: Office, tmp_path: Path, listen: str, host: str) -> None:
    other = Office(tmp_path / "other")
    server = Server(office, tmp_path, listen)
    try:
        strangers = {
            "its certificate is of another authority": with_authority_of(other.issue(COORDINATOR), office),
            "its certificate has expired": office.expired(COORDINATOR),
            "its certificate is not valid yet": office.not_yet_valid(COORDINATOR),
            "its certificate is not for calling": office.issue(AGENT),
            "it does not speak TLS": None,
        }
        await server.call(office.issue(COORDINATOR), host)  # is not refused, though there is no such method
        for folder in strangers.values():
            await server.call(folder, host)
        found, rest = await server.refusals(len(strangers))
    finally:
        server.close()
    assert [reason for _, reason in found] == list(strangers)
    for peer, _ in found:
        assert peer.startswith(f"{host}:")
        assert peer.rpartition(":")[2].isdecimal()
    assert rest == []


# --- texts ----------------------------------------------------------------------------------------

HEAD = b"I1127 13:39:18.991704   11028 handshaker.cc:155] CallNextHandshakerLocked: error="
FAILED = (
    HEAD
    + b"UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000c0:SSL routines:"
    b"OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: OK\n=== Source Location Trace: ===\n"
    b"src/core/util/status_helper.cc:68\n"
)


def arguments(peer: bytes = b"ipv4:10.0.0.1:4242", credentials: bytes = b"0x5580") -> bytes:
    return (
        b" shutdown=false index=2, args={endpoint=0x7f, args={grpc.internal.endpoint_peer_address="
        + peer
        + b", grpc.internal.server_credentials="
        + credentials
        + b", grpc.internal.x=1}}\n"
    )


FIRST = HEAD + b"OK shutdown=false index=0, args={grpc.internal.server_credentials=0x5580, x=1}\n"


class Read:
    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.reader = Reader(lambda peer, reason: self.refused.append((peer, reason)))

    def take(self, *pieces: bytes) -> list[bytes]:
        return [line for piece in pieces for line in self.reader.take(piece)]


@pytest.fixture
def read() -> Read:
    return Read()


def test_a_refusal(read: Read) -> None:
    assert read.take(FIRST, FAILED, arguments()) == []
    assert read.refused == [("10.0.0.1:4242", "it showed no certificate")]


def test_text_comes_in_pieces_of_any_size(read: Read) -> None:
    text = FIRST + FAILED + arguments() + b"other\n"
    assert read.take(*(text[place : place + 1] for place in range(len(text)))) == [b"other"]
    assert len(read.refused) == 1


def test_what_fails_for_another_reason_is_none(read: Read) -> None:
    read.take(FIRST, HEAD + b"UNAVAILABLE: Handshake read failed (Socket closed)\n", arguments())
    assert read.refused == []


def test_a_reason_is_not_kept_for_the_next_one(read: Read) -> None:
    closed = HEAD + b"UNAVAILABLE: Handshake read failed (Socket closed)\n"
    read.take(FIRST, FAILED, closed, arguments(), FAILED, arguments(), arguments())
    assert len(read.refused) == 1


def test_refusals_of_our_own_calls_are_the_callers(read: Read) -> None:
    """Of a client in this process, whose arguments have no server's credentials."""
    own = b" shutdown=false, args={grpc.internal.endpoint_peer_address=ipv4:10.0.0.1:1, x=1}\n"
    read.take(FIRST, FAILED, own)
    assert read.refused == []


def test_made_up_lines_are_not_believed(read: Read) -> None:
    read.take(FIRST, FAILED, arguments(credentials=b"0x1"), FAILED, arguments(credentials=b"0"))
    assert read.refused == []


def test_other_lines_are_passed_on(read: Read) -> None:
    assert read.take(b"terminate called\n", FIRST, b"\n", b"E1127 not quite\n") == [
        b"terminate called",
        b"E1127 not quite",
    ]


def test_a_line_without_an_end_is_not_kept_for_ever(read: Read) -> None:
    for _ in range(40):
        read.take(b"x" * 100_000)
    assert len(read.reader._rest) <= 2 << 20
    read.take(b"\n", FIRST, FAILED, arguments())
    assert len(read.refused) == 1


def test_what_is_not_known_is_told_as_it_is() -> None:
    assert explain(b"SSL_ERROR_SSL: OPENSSL_internal:SOMETHING_NEW") == "SOMETHING_NEW"
    assert explain(b"a\x1b[31m\xff") == "a\\x1b[31m\N{REPLACEMENT CHARACTER}"


def test_lines_can_be_shown() -> None:
    assert printable(b"\x1b[2Jgone\r\x07") == "\\x1b[2Jgone\\r\\x07"
    assert len(printable(b"x" * 5000)) == 1000


# --- descriptor 2 ---------------------------------------------------------------------------------

LOG = """
import asyncio, logging, os, sys
from nhop.security.handshakes import HandshakeLog

async def main():
    logging.basicConfig(format="log: %(message)s")
    said = []
    log = HandshakeLog(said.append)
    log.open()
    print("by print", file=sys.stderr)
    logging.warning("by logging")
    os.write(2, b"by a library\\n" * 3)
    while not said:
        await asyncio.sleep(0.01)
    for text in said:
        logging.warning(text)
    log.close()
    os.write(2, b"afterwards\\n")
    print("and by print", file=sys.stderr)
    logging.warning("and by logging")
    log.close()

asyncio.run(main())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: pytest takes descriptor 2 as well."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_only_what_libraries_write_is_read() -> None:
    done = run(LOG)
    assert done.stderr.splitlines() == [
        "by print",
        "log: by logging",
        *["log: written to stderr: by a library"] * 3,
        "afterwards",
        "and by print",
        "log: and by logging",
    ]


FLOOD = """
import asyncio, os
from nhop.security.handshakes import HandshakeLog

async def main():
    said = []
    log = HandshakeLog(said.append)
    log.open()
    try:
        while True:
            os.write(2, b"x" * 1000 + b"\\n")
    except BlockingIOError:
        pass
    while not said:
        await asyncio.sleep(0.01)
    log.close()
    print(len(said))

asyncio.run(main())
"""


def test_more_than_fits_neither_blocks_nor_is_all_told() -> None:
    done = run(FLOOD)
    assert 1 <= int(done.stdout) <= 30
