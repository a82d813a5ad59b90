"""The certificate authority of an installation: makes its own certificate and those of all others."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nhop.security.errors import CertificateError
from nhop.security.folder import (
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    check_key_file,
    parse,
)
from nhop.security.identity import NAME, Identity, Role

AUTHORITY_KEY_FILE = "ca.key"
AUTHORITY_DAYS = 3650
DAYS = 365
LONGEST_DAYS = 825
SKEW = datetime.timedelta(hours=1)
"""So much earlier than now a certificate begins: clocks of hosts differ."""

_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
)
_SERVES = (ExtendedKeyUsageOID.SERVER_AUTH,)
_CALLS = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_USAGES = {
    Role.COORDINATOR: (*_SERVES, *_CALLS),
    # What serves tasks of strangers never calls another agent, nor a coordinator: TLS itself refuses it.
    Role.AGENT: _SERVES,
    Role.CLIENT: _CALLS,
}


@dataclass(frozen=True, slots=True)
class Authority:
    """``load`` or ``create`` it; ``issue`` makes certificates. ``folder`` holds ``ca.crt`` and ``ca.key``.

    ``trusted`` is the text of ``ca.crt``, which goes to every holder: beside the authority's own certificate
    it may hold others, such as that of an authority that this one is to take the place of.
    """

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    trusted: bytes

    @classmethod
    def create(cls, folder: Path, name: str, now: datetime.datetime) -> Authority:
        """Makes the folder and a new authority in it.

        Raises CertificateError where one is there already, or the folder cannot be written.
        """
        cls.check_is_free(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(
            folder, {AUTHORITY_KEY_FILE: (_key_text(key), 0o600), AUTHORITY_FILE: (_text(certificate), 0o644)}
        )
        return cls(folder, certificate, key, _text(certificate))

    @staticmethod
    def check_is_free(folder: Path) -> None:
        """Raises CertificateError where a folder holds an authority, or half of one."""
        for present in (folder / AUTHORITY_FILE, folder / AUTHORITY_KEY_FILE):
            if _exists(present):
                raise CertificateError(
                    f"{present}: is there already, and certificates that it has signed may be in use: `certs "
                    f"issue` makes more. To begin anew choose another --dir, or move {folder} away"
                )

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority of a folder; CertificateError where there is none, or others can read its key."""
        path = folder / AUTHORITY_KEY_FILE
        _check_is_whole(folder)
        check_key_file(path)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            trusted = (folder / AUTHORITY_FILE).read_bytes()
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CertificateError(f"{folder}: its authority cannot be used: {error}") from None
        own = [
            each for each in parse(folder / AUTHORITY_FILE, trusted) if each.public_key() == key.public_key()
        ]
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not own:
            raise CertificateError(f"{folder}: {AUTHORITY_KEY_FILE} is not the key of {AUTHORITY_FILE}")
        return cls(folder, own[0], key, trusted)

    def issue(
        self,
        place: Path,
        identity: Identity,
        hosts: Sequence[str],
        now: datetime.datetime,
        days: int = DAYS,
    ) -> datetime.datetime:
        """Writes a TLS folder for the holder, who is reached at ``hosts``; returns when it ends.

        What is there already is replaced once all is written, file by file: who reads it just then finds
        that the key is not the certificate's, and reads it again. Raises CertificateError.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name[:64])])
        names = [x509.UniformResourceIdentifier(identity.uri), *map(alternative_name, hosts)]
        end = self.certificate.not_valid_after_utc
        if now >= end:
            raise CertificateError(
                f"{self.folder / AUTHORITY_FILE}: the authority has expired on {end:%Y-%m-%d}; make a new "
                "one with: nhop-coordinator certs init --dir ANOTHER"
            )
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, days, latest=end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USAGES[identity.role]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        files = {
            KEY_FILE: (_key_text(key), 0o600),
            CERTIFICATE_FILE: (_text(certificate), 0o644),
            AUTHORITY_FILE: (self.trusted, 0o644),
        }
        _write(place, files)
        return certificate.not_valid_after_utc


def check_name(name: str) -> str:
    """A name for a certificate; CertificateError."""
    if not NAME.fullmatch(name):
        raise CertificateError(
            f"{name!r} cannot be the name of a certificate: letters, digits, '.', '_', ':' and '-', "
            "at most 128, a letter or digit first and last"
        )
    return name


def alternative_name(host: str) -> x509.GeneralName:
    """A host's name or address as in certificates; CertificateError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(host.removesuffix(".")) or len(host) > 253 or re.fullmatch("[0-9.]+", host):
        raise CertificateError(f"{host!r} is neither the name nor the address of a host")
    return x509.DNSName(host.removesuffix(".").lower())


def _write(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Writes files, each with its mode, and makes their folder: none before there is room for all."""
    made: dict[Path, Path] = {}
    path = folder
    try:
        _make(folder)
        try:
            for name, (content, mode) in files.items():
                path = folder / name
                temporary = path.with_name(f".{name}.{secrets.token_hex(8)}")
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
                made[temporary] = path
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for temporary, path in made.items():
                temporary.replace(path)
        except BaseException:
            for temporary in made:
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CertificateError(f"{path}: cannot be written ({error.strerror})") from error


def _make(folder: Path) -> None:
    """Makes a folder and those above it that are missing, all for their owner alone. OSError."""
    if not folder.parent.exists():
        _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _check_is_whole(folder: Path) -> None:
    """Raises CertificateError where a folder holds no authority, or half of one."""
    key, certificate = (_exists(folder / name) for name in (AUTHORITY_KEY_FILE, AUTHORITY_FILE))
    if key and certificate:
        return
    if key:
        raise CertificateError(
            f"{folder}/{AUTHORITY_FILE}: is missing beside {AUTHORITY_KEY_FILE}; copy it from a folder that "
            "was issued here, each has one"
        )
    if certificate:
        raise CertificateError(
            f"{folder}/{AUTHORITY_KEY_FILE}: is missing: nothing can be issued without it. Put a copy back; "
            "if there is none, make a new authority (nhop-coordinator certs init --dir ANOTHER). What was "
            "issued serves until it ends"
        )
    raise CertificateError(f"{folder}: there is no authority; make one with: nhop-coordinator certs init")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror})") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
    latest: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _text(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
