"""What a TLS folder must hold, and what is said where it does not."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from nhop.security.errors import CertificateError
from nhop.security.folder import FILES, TlsFiles, is_signed, load
from nhop.security.identity import Identity, Role
from tests.certificates import AGENT, CLIENT, COORDINATOR, DAY, LOOPBACK, Office, trust, utc_now
from tests.contract.harness import ROOT


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


def read(folder: Path, *roles: Role, at: datetime.datetime | None = None) -> TlsFiles:
    return load(folder, frozenset(roles or (AGENT,)), at or utc_now())


def refused(folder: Path, *roles: Role) -> str:
    with pytest.raises(CertificateError) as caught:
        read(folder, *roles)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_what_it_holds(office: Office) -> None:
    folder = office.issue(AGENT, "gpu-1", "10.0.0.11", "gpu-1.lan")
    files = read(folder)
    assert files.identity == Identity(AGENT, "gpu-1")
    assert files.hosts == ("10.0.0.11", "gpu-1.lan")
    assert files.key == (folder / "tls.key").read_bytes()
    assert files.begin < utc_now() < files.end


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(office: Office, name: str) -> None:
    folder = office.issue(AGENT)
    (folder / name).unlink()
    assert f"{name}: is missing; a TLS folder has ca.crt, tls.crt, tls.key" in refused(folder)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is missing" in refused(tmp_path / "file")


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_the_place_of_a_file(office: Office, name: str) -> None:
    folder = office.issue(AGENT)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name}: is not a regular file" in refused(folder)


@pytest.mark.timeout(20)
def test_a_fifo_is_not_waited_for(office: Office) -> None:
    folder = office.issue(AGENT)
    (folder / "tls.key").unlink()
    os.mkfifo(folder / "tls.key", 0o600)
    assert "tls.key: is not a regular file" in refused(folder)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_key_that_others_can_read(office: Office, mode: int) -> None:
    folder = office.issue(AGENT)
    (folder / "tls.key").chmod(mode)
    assert f"others can read this key (mode {mode:04o}); chmod 600 it" in refused(folder)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_an_authority_that_others_can_replace(office: Office, mode: int) -> None:
    folder = office.issue(AGENT)
    (folder / "ca.crt").chmod(mode)
    assert f"ca.crt: others can write to it (mode {mode:04o})" in refused(folder)


LOAD = """
import os, sys
from pathlib import Path
from nhop.security.folder import load
from nhop.security.identity import Role
from nhop.security.errors import CertificateError
import datetime
try:  # what this imports on the way may be root's alone
    load(Path(sys.argv[1]), frozenset(Role), datetime.datetime.now(datetime.UTC))
except CertificateError:
    pass
os.setgid(65534); os.setuid(65534)
try:
    load(Path(sys.argv[1]), frozenset(Role), datetime.datetime.now(datetime.UTC))
except CertificateError as error:
    print(error)
else:
    print("used")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [
        (12345, 0o600, "tls.key: cannot be read (Permission denied)"),
        (65534, 0o600, "used"),
        (65534, 0o400, "used"),
    ],
)
def test_anybody_else_uses_only_keys_of_its_own(office: Office, owner: int, mode: int, said: str) -> None:
    with_own = Path("/tmp") / f"nhop-test-{os.getpid()}-{owner}-{mode}"  # pytest's folders are root's alone
    folder = office.issue(AGENT, place=with_own)
    try:
        folder.chmod(0o755)
        os.chown(folder / "tls.key", owner, owner)
        (folder / "tls.key").chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, folder],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for name in FILES:
            (folder / name).unlink()
        folder.rmdir()
    assert said in done.stdout, done


def test_another_users_key_that_can_be_read_by_a_right_beyond_its_mode(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an access list: the mode alone says that it is private, but the owner is another."""
    folder = office.issue(AGENT)
    monkeypatch.setattr(os, "geteuid", lambda: (folder / "tls.key").stat().st_uid + 1)
    assert "belongs to another user" in refused(folder)


def test_files_that_are_links_as_kubernetes_mounts_them(office: Office, tmp_path: Path) -> None:
    data = tmp_path / "..2026_11_27"
    office.issue(AGENT, place=data)
    (tmp_path / "..data").symlink_to(data.name)
    for name in FILES:
        (tmp_path / name).symlink_to(f"..data/{name}")
    assert read(tmp_path).identity.role is AGENT


def test_the_key_of_another_certificate(office: Office) -> None:
    folder, other = office.issue(AGENT), office.issue(AGENT)
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
    assert "tls.key is not the key of tls.crt" in refused(folder)


def test_another_authority_of_the_same_name(office: Office, tmp_path: Path) -> None:
    folder = office.issue(AGENT)
    trust(folder, Office(tmp_path))
    assert "is not signed by the authority in ca.crt beside it" in refused(folder)


def test_one_of_several_authorities(office: Office, tmp_path: Path) -> None:
    folder = office.issue(AGENT)
    trust(folder, Office(tmp_path), office)
    assert read(folder).identity.role is AGENT


def test_expired(office: Office) -> None:
    assert "has expired on" in refused(office.expired(AGENT))


def test_not_yet_valid(office: Office) -> None:
    assert "is this clock right?" in refused(office.not_yet_valid(AGENT))


def test_an_authority_that_has_expired(office: Office) -> None:
    folder = office.issue(AGENT)
    late = utc_now() + 3000 * DAY
    with pytest.raises(CertificateError, match=r"ca\.crt: the authority has expired on"):
        read(folder, at=late)


def test_the_wrong_role(office: Office) -> None:
    said = refused(office.issue(CLIENT, "eve"), AGENT)
    assert "is the certificate of client eve, where one of an agent is needed" in said
    said = refused(office.issue(CLIENT, "eve"), COORDINATOR)
    assert "where one of a coordinator is needed" in said


def change(office: Office, folder: Path, names: list[x509.GeneralName]) -> None:
    """Gives the certificate in a folder other names."""
    own = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    builder = x509.CertificateBuilder(
        issuer_name=own.issuer,
        subject_name=own.subject,
        public_key=own.public_key(),
        serial_number=own.serial_number,
        not_valid_before=own.not_valid_before_utc,
        not_valid_after=own.not_valid_after_utc,
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(office.authority.key, hashes.SHA256())
    (folder / "tls.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.DNSName("host")],
        [x509.DNSName("nhop://agent/host")],
        [x509.UniformResourceIdentifier("nhop://agent/a"), x509.UniformResourceIdentifier("nhop://agent/b")],
        [x509.UniformResourceIdentifier("https://agent/a")],
    ],
)
def test_no_role(office: Office, names: list[x509.GeneralName]) -> None:
    folder = office.issue(AGENT)
    change(office, folder, names)
    assert "has no role of NHOP" in refused(folder)


def as_key(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (folder / "tls.key").write_bytes(locked)


GARBAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty key": (lambda f: (f / "tls.key").write_bytes(b""), "is no private key in PEM"),
    "a key with a password": (as_key, "is no private key in PEM without a password"),
    "a certificate as key": (
        lambda f: (f / "tls.key").write_bytes((f / "tls.crt").read_bytes()),
        "is no private key in PEM",
    ),
    "an empty certificate": (lambda f: (f / "tls.crt").write_bytes(b""), "is no certificate in PEM"),
    "a key as certificate": (
        lambda f: (f / "tls.crt").write_bytes((f / "tls.key").read_bytes()),
        "is no certificate in PEM",
    ),
    "half a certificate": (
        lambda f: (f / "tls.crt").write_bytes((f / "tls.crt").read_bytes()[:300]),
        "is no certificate in PEM",
    ),
    "zeros as authority": (lambda f: (f / "ca.crt").write_bytes(bytes(1000)), "is no certificate in PEM"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(office: Office, what: str) -> None:
    spoil, said = GARBAGE[what]
    folder = office.issue(AGENT)
    spoil(folder)
    assert said in refused(folder)


@settings(max_examples=150)
@given(st.data())
def test_whatever_the_files_hold_is_used_or_refused(
    office: Office, spoilt: tuple[Path, dict[str, bytes]], data: st.DataObject
) -> None:
    """A byte of what PEM holds is another one: nothing but CertificateError comes of it."""
    folder, whole = spoilt
    name = data.draw(st.sampled_from(FILES))
    der = bytearray(pem_content(whole[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    for each in FILES:
        (folder / each).write_bytes(whole[each])
    (folder / name).write_bytes(as_pem(whole[name], bytes(der)))
    try:
        read(folder)
    except CertificateError as error:
        assert "\n" not in str(error)
    is_signed((folder / "tls.crt").read_bytes(), (folder / "ca.crt").read_bytes())


@pytest.fixture(scope="module")
def spoilt(office: Office) -> tuple[Path, dict[str, bytes]]:
    folder = office.issue(AGENT)
    return folder, {name: (folder / name).read_bytes() for name in FILES}


def pem_content(text: bytes) -> bytes:
    import base64

    return base64.b64decode(b"".join(text.splitlines()[1:-1]))


def as_pem(model: bytes, der: bytes) -> bytes:
    import base64

    first, *_, last = model.splitlines()
    return b"\n".join([first, base64.encodebytes(der).strip(), last, b""])


@pytest.mark.parametrize(("days", "left", "soon"), [(365, 31, False), (365, 29, True)])
def test_when_it_is_time_for_a_new_one(office: Office, days: int, left: int, soon: bool) -> None:
    files = read(office.issue(AGENT, days=days))
    assert files.ends_soon(files.end - left * DAY) is soon


def test_a_short_lived_one_is_renewed_in_its_last_third(office: Office) -> None:
    files = read(office.issue(AGENT, days=3))
    life = files.end - files.begin
    assert not files.ends_soon(files.end - life * 0.34)
    assert files.ends_soon(files.end - life * 0.33)


def test_who_is_signed(office: Office, tmp_path: Path) -> None:
    folder = office.issue(AGENT, "host", *LOOPBACK)
    certificate = (folder / "tls.crt").read_bytes()
    other = Office(tmp_path)
    assert is_signed(certificate, office.authority.trusted)
    assert is_signed(certificate, other.authority.trusted + office.authority.trusted)
    assert not is_signed(certificate, other.authority.trusted)
    assert not is_signed(b"garbage", office.authority.trusted)
