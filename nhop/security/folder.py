"""A TLS folder: what is in it, and whether it can be used."""

from __future__ import annotations

import datetime
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from nhop.security.errors import CertificateError
from nhop.security.identity import Identity, Role

AUTHORITY_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"
FILES = (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE)

MAX_BYTES = 1 << 20
_ODD = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for what it does not understand."""

NOTICE = datetime.timedelta(days=30)
"""So long before its end a certificate is announced to end; of short-lived ones in their last third."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a TLS folder holds, checked: PEM texts, whose it is, and from when to when it is valid (UTC)."""

    authority: bytes
    certificate: bytes
    key: bytes
    identity: Identity
    hosts: tuple[str, ...]
    begin: datetime.datetime
    end: datetime.datetime

    def ends_soon(self, now: datetime.datetime) -> bool:
        """Whether it is time to issue a new one."""
        return now >= self.end - min(NOTICE, (self.end - self.begin) / 3)


def load(folder: Path, roles: frozenset[Role], now: datetime.datetime) -> TlsFiles:
    """Reads and checks a folder for the use by one of ``roles`` at ``now``; CertificateError.

    Refused are: keys that others can read, an authority that others can replace, what is expired or not
    yet valid, a certificate of another role or that its own authority has not signed.
    """
    authority, certificate, key = (_read(folder / name) for name in FILES)
    check_key_file(folder / KEY_FILE)
    _check_writers(folder / AUTHORITY_FILE)
    path = folder / CERTIFICATE_FILE
    own, *_ = parse(path, certificate)
    authorities = parse(folder / AUTHORITY_FILE, authority)
    _check_pair(folder, own, key)
    signers = [each for each in authorities if _signed(own, each)]
    if not signers:
        raise CertificateError(f"{path}: is not signed by the authority in {AUTHORITY_FILE} beside it")
    if all(now >= each.not_valid_after_utc for each in signers):
        raise CertificateError(
            f"{folder / AUTHORITY_FILE}: the authority has expired on "
            f"{signers[0].not_valid_after_utc:%Y-%m-%d}; make a new one with: nhop-coordinator certs init"
        )
    identity = _identity(path, own)
    if identity.role not in roles:
        wanted = sorted(role.value for role in roles)
        needed = " or ".join(f"{'an' if role == Role.AGENT.value else 'a'} {role}" for role in wanted)
        raise CertificateError(
            f"{path}: is the certificate of {identity}, where one of {needed} is needed; "
            f"issue one with: nhop-coordinator certs issue {wanted[0]} NAME"
        )
    begin, end = own.not_valid_before_utc, own.not_valid_after_utc
    if now < begin:
        raise CertificateError(f"{path}: is valid from {begin:%Y-%m-%d %H:%M} UTC on; is this clock right?")
    if now >= end:
        raise CertificateError(
            f"{path}: has expired on {end:%Y-%m-%d}; issue it again with nhop-coordinator certs issue"
        )
    return TlsFiles(authority, certificate, key, identity, hosts_of(own), begin, end)


def parse(path: Path, text: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM text, at least one; CertificateError where we do not understand them."""
    try:
        found = x509.load_pem_x509_certificates(text)
        for each in found:
            each.public_key()
            _alternative_names(each)
    except _ODD:
        raise CertificateError(f"{path}: is no certificate in PEM that can be understood") from None
    return found


def is_signed(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate is of one of the authorities, both in PEM."""
    try:
        own = x509.load_pem_x509_certificate(certificate)
        authorities = x509.load_pem_x509_certificates(authority)
    except _ODD:
        return False
    return any(_signed(own, each) for each in authorities)


def check_key_file(path: Path) -> None:
    """Raises CertificateError where others than the owner can read a key, or it is another user's."""
    try:
        status = path.stat()
    except OSError as error:
        raise CertificateError(f"{path}: {_why(error)}") from None
    if status.st_mode & 0o077:
        raise CertificateError(
            f"{path}: others can read this key (mode {status.st_mode & 0o777:04o}); chmod 600 it, and issue "
            "a new one if somebody may have"
        )
    if os.geteuid() not in (0, status.st_uid):
        raise CertificateError(f"{path}: belongs to another user (uid {status.st_uid}); chown it")


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and addresses of the host that a certificate is for, in its order."""
    names = _alternative_names(certificate)
    return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """Whose certificate it is; None where it is none of ours."""
    return Identity.find(
        name.value
        for name in _alternative_names(certificate)
        if isinstance(name, x509.UniformResourceIdentifier)
    )


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _check_writers(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CertificateError(f"{path}: {_why(error)}") from None
    if mode & 0o022:
        raise CertificateError(
            f"{path}: others can write to it (mode {mode & 0o777:04o}), and so choose whom we trust; "
            "chmod 644 it, and see what is in it"
        )


def _identity(path: Path, certificate: x509.Certificate) -> Identity:
    identity = identity_of(certificate)
    if identity is None:
        raise CertificateError(
            f"{path}: has no role of NHOP (a name such as nhop://agent/NAME); issue one with: "
            "nhop-coordinator certs issue"
        )
    return identity


def _check_pair(folder: Path, certificate: x509.Certificate, key: bytes) -> None:
    try:
        private = serialization.load_pem_private_key(key, None)
    except _ODD:
        raise CertificateError(f"{folder / KEY_FILE}: is no private key in PEM without a password") from None
    ours, theirs = (
        each.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for each in (private.public_key(), certificate.public_key())
    )
    if ours != theirs:
        raise CertificateError(f"{folder}: {KEY_FILE} is not the key of {CERTIFICATE_FILE}")


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *_ODD):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would be waited for
            raise CertificateError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise CertificateError(f"{path}: {_why(error)}") from None


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"is missing; a TLS folder has {', '.join(FILES)}, made with: nhop-coordinator certs"
    return f"cannot be read ({error.strerror})"
