"""What an authority issues, and where it does not."""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from nhop.security.authority import SKEW, Authority, alternative_name, check_name
from nhop.security.errors import CertificateError
from nhop.security.identity import Identity, Role
from tests.certificates import AGENT, CLIENT, COORDINATOR, DAY, Office, utc_now


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_its_owner_can_read_keys(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        office = Office(tmp_path)
        folder = office.issue(AGENT)
    finally:
        os.umask(before)
    assert mode(office.authority.folder) == 0o700
    assert mode(office.authority.folder / "ca.key") == 0o600
    assert mode(folder) == 0o700
    assert mode(folder / "tls.key") == 0o600
    assert mode(folder / "tls.crt") == mode(folder / "ca.crt") == 0o644
    assert {path.name for path in folder.iterdir()} == {"ca.crt", "tls.crt", "tls.key"}


@pytest.mark.parametrize(
    ("role", "usages"),
    [
        (COORDINATOR, {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
        (AGENT, {ExtendedKeyUsageOID.SERVER_AUTH}),
        (CLIENT, {ExtendedKeyUsageOID.CLIENT_AUTH}),
    ],
)
def test_what_each_role_may_be_used_for(office: Office, role: Role, usages: set[object]) -> None:
    found = certificate(office.issue(role)).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert set(found.value) == usages


def test_a_holder_is_no_authority(office: Office) -> None:
    extensions = certificate(office.issue(COORDINATOR)).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    own = office.authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (own.ca, own.path_length) == (True, 0)


def test_names_and_times(office: Office) -> None:
    now = utc_now().replace(microsecond=0)
    place = office.folder / "holder"
    end = office.authority.issue(place, Identity(AGENT, "gpu-1"), ["GPU-1.lan.", "fd00::1"], now, 90)
    found = certificate(place)
    assert end == found.not_valid_after_utc == now + 90 * DAY
    assert found.not_valid_before_utc == now - SKEW
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.UniformResourceIdentifier("nhop://agent/gpu-1"),
        x509.DNSName("gpu-1.lan"),
        x509.IPAddress(ipaddress.ip_address("fd00::1")),
    ]


def test_every_certificate_has_a_key_of_its_own(office: Office) -> None:
    place = office.issue(AGENT)
    key, serial = (place / "tls.key").read_bytes(), certificate(place).serial_number
    office.issue(AGENT, place=place)
    assert (place / "tls.key").read_bytes() != key
    assert certificate(place).serial_number != serial


def test_none_outlives_its_authority(office: Office) -> None:
    end = office.authority.certificate.not_valid_after_utc
    now = end - 10 * DAY
    assert office.authority.issue(office.folder / "late", Identity(AGENT, "a"), ["a"], now) == end
    with pytest.raises(CertificateError, match=r"ca\.crt: the authority has expired on .* certs init"):
        office.authority.issue(office.folder / "later", Identity(AGENT, "a"), ["a"], end)


def test_a_second_one_is_not_made_over_the_first(office: Office) -> None:
    for name in ("ca.key", "ca.crt"):
        (office.authority.folder / name).rename(office.folder / name)
        with pytest.raises(CertificateError, match="is there already"):
            Authority.create(office.authority.folder, "other", utc_now())
        (office.folder / name).rename(office.authority.folder / name)


def test_it_is_loaded(office: Office) -> None:
    loaded = Authority.load(office.authority.folder)
    assert loaded.certificate == office.authority.certificate
    place = office.folder / "holder"
    loaded.issue(place, Identity(AGENT, "a"), ["a"], utc_now())
    certificate(place).verify_directly_issued_by(office.authority.certificate)


def test_it_hands_on_all_that_is_trusted(office: Office, tmp_path: Path) -> None:
    """While one authority takes the place of another."""
    other = Office(tmp_path / "other")
    both = other.authority.trusted + office.authority.trusted
    (office.authority.folder / "ca.crt").write_bytes(both)
    loaded = Authority.load(office.authority.folder)
    assert loaded.certificate == office.authority.certificate
    place = office.folder / "holder"
    loaded.issue(place, Identity(AGENT, "a"), ["a"], utc_now())
    assert (place / "ca.crt").read_bytes() == both


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "there is no authority; make one with"),
        (lambda f: (f / "ca.key").unlink(), "ca.key: is missing: nothing can be issued without it"),
        (lambda f: (f / "ca.key").chmod(0o644), "others can read this key"),
        (lambda f: (f / "ca.key").write_text("garbage"), "its authority cannot be used"),
        (lambda f: (f / "ca.crt").write_text("garbage"), "is no certificate in PEM"),
        (lambda f: (f / "ca.crt").unlink(), "ca.crt: is missing beside ca.key; copy it from a folder"),
        (
            lambda f: (f / "ca.key").write_bytes((f.parent / "other/ca/ca.key").read_bytes()),
            "ca.key is not the key of ca.crt",
        ),
    ],
)
def test_one_that_cannot_be_used(office: Office, tmp_path: Path, spoil: object, said: str) -> None:
    Office(tmp_path / "other")
    assert callable(spoil)
    spoil(office.authority.folder)
    with pytest.raises(CertificateError, match=said) as caught:
        Authority.load(office.authority.folder)
    assert str(office.authority.folder) in str(caught.value)


def test_what_cannot_be_written_leaves_nothing(office: Office, tmp_path: Path) -> None:
    (tmp_path / "a" / "tls.key").mkdir(parents=True)
    with pytest.raises(CertificateError, match=r"a/tls\.key: cannot be written"):
        office.authority.issue(tmp_path / "a", Identity(AGENT, "a"), ["a"], utc_now())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tls.key"]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_renewal_that_is_cut_short_leaves_what_was_there(
    office: Office, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    folder = office.issue(AGENT, "a")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    written = iter(range(1, 4))

    def full(_: int) -> None:
        if next(written) == number:
            raise error

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((CertificateError, KeyboardInterrupt)):
        office.authority.issue(folder, Identity(AGENT, "a"), ["a"], utc_now())
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_link_is_replaced_not_followed(office: Office, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tls.key").symlink_to("../elsewhere")
    office.authority.issue(tmp_path / "a", Identity(AGENT, "a"), ["a"], utc_now())
    assert (tmp_path / "elsewhere").read_bytes() == b""
    assert mode(tmp_path / "a" / "tls.key") == 0o600


def test_folders_are_their_owners_whatever_the_umask(office: Office, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        office.authority.issue(tmp_path / "b" / "c" / "d", Identity(AGENT, "a"), ["a"], utc_now())
    finally:
        os.umask(umask)
    assert [mode(tmp_path / way) for way in ("b", "b/c", "b/c/d")] == [0o700] * 3


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "x.", "a b", "a\nb", "å", "a" * 129])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(CertificateError, match="cannot be the name of a certificate"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "10.0.0.1", "fd00::1", "alice.host-1", "a" * 128])
def test_names(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=20))
def test_a_name_stays_within_its_folder(name: str) -> None:
    try:
        check_name(name)
    except CertificateError:
        return
    assert Path("base", name).resolve().parent == Path("base").resolve()


@pytest.mark.parametrize(
    "host", ["", "*", "*.example", "a..b", "-a", "a/b", "nhop://agent/x", "1.2.3", "1.2.3.4.5", "a" * 64, "ö"]
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(CertificateError, match="is neither the name nor the address of a host"):
        alternative_name(host)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("GPU-1", x509.DNSName("gpu-1")),
        ("a.example.", x509.DNSName("a.example")),
        ("my_host", x509.DNSName("my_host")),
        ("10.0.0.1", x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
        ("[fd00::1]", x509.IPAddress(ipaddress.ip_address("fd00::1"))),
    ],
)
def test_hosts(host: str, name: x509.GeneralName) -> None:
    assert alternative_name(host) == name


def test_clocks_may_differ_by_some_minutes(office: Office) -> None:
    folder = office.issue(AGENT, begun=datetime.timedelta())
    assert certificate(folder).not_valid_before_utc < utc_now() - datetime.timedelta(minutes=50)
