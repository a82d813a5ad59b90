"""``nhop-coordinator certs``: the authority of an installation, and the certificates of everybody in it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import getpass
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.errors import NhopError, UsageError
from nhop.security.authority import (
    AUTHORITY_KEY_FILE,
    DAYS,
    LONGEST_DAYS,
    Authority,
    alternative_name,
    check_name,
)
from nhop.security.errors import CertificateError
from nhop.security.folder import (
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    FILES,
    KEY_FILE,
    hosts_of,
    identity_of,
    parse,
)
from nhop.security.identity import Identity, Role
from nhop_models.contract import printable

if TYPE_CHECKING:
    from cryptography import x509

FOLDERS = {Role.COORDINATOR: "coordinators", Role.AGENT: "agents", Role.CLIENT: "clients"}
OWN = (Role.COORDINATOR, Role.CLIENT)
"""Whose certificates ``init`` makes beside the authority's: those of the person who runs it."""
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Why a file cannot be written although nothing is wrong with what was asked for."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Where the authority is; ~/.config/nhop/certs by default (or below XDG_CONFIG_HOME).",
)
_days = click.option(
    "--days",
    type=click.IntRange(1, LONGEST_DAYS),
    default=DAYS,
    show_default=True,
    help="How long the certificate is valid.",
)


@click.group("certs", context_settings=_SETTINGS)
def certs() -> None:
    """Certificates for TLS: make an authority once, issue a certificate for each host, see when they end.

    Every certificate has a role: coordinator, agent or client. A folder with ca.crt, tls.crt and tls.key is
    what --tls takes; copy it to its host, and nothing else. The authority's key (ca.key) stays where it is.
    """


@certs.command("init", context_settings=_SETTINGS)
@click.argument("host", nargs=-1)
@_folder
@_days
def init(host: tuple[str, ...], folder: Path | None, days: int) -> int:
    """Make an authority, and the certificates of this machine's coordinator and of its user as a client.

    HOST: more names and addresses by which clients reach this machine's coordinator (--serve); its own name
    and addresses are there without.
    """
    place = _place(folder)
    now = datetime.datetime.now(datetime.UTC)
    with _errors():
        for each in host:  # before anything is made
            alternative_name(each)
        machine = socket.gethostname()
        found = [each for each in (machine, socket.getfqdn()) if _is_host(each)]
        hosts = _unique([*found, *_addresses(), "localhost", "127.0.0.1", "::1", *host])
        name = _name(f"{_user()}.{machine}")
        owns = [place / role.value for role in OWN]
        Authority.check_is_free(place)
        for own in owns:
            if (own / KEY_FILE).exists():
                raise UsageError(
                    f"{own}: holds a certificate already, of another authority; choose another --dir, or "
                    "move it away"
                )
        ends = {}
        with _all_or_nothing([*owns, place]) as made:
            authority = Authority.create(place, f"NHOP {machine}"[:64], now)
            made += [place / AUTHORITY_KEY_FILE, place / AUTHORITY_FILE]
            for role, own in zip(OWN, owns, strict=True):
                made += [own / each for each in FILES]
                at = hosts if role is Role.COORDINATOR else ()
                ends[role] = authority.issue(own, Identity(role, name), at, now, days)
    click.echo(
        f"authority         {place} ({AUTHORITY_KEY_FILE} signs certificates: keep it here, and a copy safe)"
    )
    for role, end in ends.items():
        _say(Identity(role, name), place / role.value, end)
    click.echo("next: nhop-coordinator certs issue --hosts hosts.txt")
    return 0


@certs.command("issue", context_settings=_SETTINGS)
@click.argument("role", type=click.Choice([role.value for role in Role]), required=False)
@click.argument("name", required=False)
@click.argument("host", nargs=-1)
@click.option(
    "--hosts",
    metavar="FILE|ec2:TAG=VALUE|slurm:",
    help="A certificate for the agent of each host that is listed there.",
)
@_folder
@_days
def issue(
    role: str | None,
    name: str | None,
    host: tuple[str, ...],
    hosts: str | None,
    folder: Path | None,
    days: int,
) -> int:
    """Issue certificates: `issue --hosts hosts.txt` for all agents, or `issue agent gpu-1 10.0.0.11`.

    NAME says who the holder is; a coordinator is recognised by it after a renewal. HOST: names and
    addresses by which it is reached; by default those of before, or NAME alone. What was issued before
    under the name is replaced: running programs take the new files into use once they are copied over the
    old ones.
    """
    now = datetime.datetime.now(datetime.UTC)
    with _errors():
        wanted = _wanted(role, name, host, hosts)
        authority = Authority.load(_place(folder))
        renewed = False
        for identity, at in wanted:
            place = authority.folder / FOLDERS[identity.role] / identity.name
            own = authority.folder / identity.role.value
            if identity.role in OWN and _issued(own, identity) is not None:
                place = own
            before = _issued(place, identity)
            known = list(hosts_of(before)) if before is not None else []
            wanted_hosts = at or known or _hosts_by_default(identity)
            end = authority.issue(place, identity, wanted_hosts, now, days)
            _say(identity, place, end, renewed=before is not None)
            renewed |= before is not None
        if authority.certificate.not_valid_after_utc < now + datetime.timedelta(days=days):
            click.echo(
                f"note: the authority itself ends on {authority.certificate.not_valid_after_utc:%Y-%m-%d}"
            )
    if any(identity.role is Role.AGENT for identity, _ in wanted):
        click.echo(
            f"next: copy each folder ({', '.join(FILES)}) to its host, and start the agent there: "
            "nhop-agent --listen 0.0.0.0:7001 --tls FOLDER"
        )
        if renewed:
            click.echo(
                "renewed: hosts may keep their earlier certificates until these end; new ones need no restart"
            )
    return 0


@certs.command("show", context_settings=_SETTINGS)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@_folder
def show(file: Path | None, folder: Path | None) -> int:
    """Show certificates: those of the authority's folder, or a FILE or TLS folder, with what is amiss."""
    now = datetime.datetime.now(datetime.UTC)
    place = file or _place(folder)
    try:
        within = place.is_dir()
        files = sorted(place.rglob("*.crt")) if within else [place]
    except OSError as error:
        raise UsageError(f"{place}: cannot be read ({error.strerror})") from None
    if not files or (file is None and not within):
        raise UsageError(f"{place}: there is no certificate; make some with: nhop-coordinator certs init")
    expired = False
    for path in files:
        if path.name == AUTHORITY_FILE and path.parent != place and file is None:
            continue  # a copy of the authority's in the folder of a holder
        of_authorities = path.name == AUTHORITY_FILE
        with _errors():
            certificates = parse(path, _read(path))
        for certificate in certificates if of_authorities else certificates[:1]:
            expired |= certificate.not_valid_after_utc <= now
            _describe(path.relative_to(place) if within else path, certificate, now)
    return 1 if expired else 0


def _wanted(
    role: str | None, name: str | None, host: tuple[str, ...], hosts: str | None
) -> list[tuple[Identity, list[str]]]:
    """Whose certificates are to be issued, and for which names and addresses each; none: as before."""
    if hosts is not None:
        if role is not None:
            raise UsageError("--hosts is for the agents that it lists: give no ROLE and NAME with it")
        return [(Identity(Role.AGENT, check_name(each)), []) for each in _listed(hosts)]
    if role is None or name is None:
        raise UsageError("what is to be issued? --hosts hosts.txt, or ROLE NAME [HOST ...]")
    if role == Role.CLIENT.value and host:
        raise UsageError("a client is called by nobody: give no HOST")
    return [(Identity(Role(role), check_name(name)), _unique(list(host)))]


def _hosts_by_default(identity: Identity) -> list[str]:
    return [] if identity.role is Role.CLIENT else [identity.name]


def _listed(hosts: str) -> list[str]:
    from coordinator.host_sources import parse_source

    targets = [address.target for address in parse_source(hosts).read(refusal="")]
    listed = [target.rpartition(":")[0].strip("[]") for target in targets if not target.startswith("unix:")]
    if not listed:
        raise UsageError(f"{hosts}: lists no host that is reached over a network")
    return _unique(listed)


def _place(folder: Path | None) -> Path:
    from nhop.security.client import default_certs

    with _errors():
        return folder if folder is not None else default_certs()


def _issued(folder: Path, identity: Identity) -> x509.Certificate | None:
    """What was issued to the holder before, if that is in the folder."""
    path = folder / CERTIFICATE_FILE
    found = parse(path, _read(path))[0] if path.exists() else None
    return found if found is not None and identity_of(found) == identity else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _describe(path: Path, certificate: x509.Certificate, now: datetime.datetime) -> None:
    identity = identity_of(certificate)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    subject = " ".join(certificate.subject.rfc4514_string().split())
    who = str(identity) if identity is not None else subject
    at = f" at {', '.join(hosts_of(certificate))}" if hosts_of(certificate) else ""
    if end <= now:
        state = f"EXPIRED on {end:%Y-%m-%d}"
    elif begin > now:
        state = f"valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    else:
        state = f"until {end:%Y-%m-%d} ({(end - now).days} days)"
    click.echo(printable(f"{path}: {who}{at}, {state}"))


def _say(identity: Identity, place: Path, end: datetime.datetime, *, renewed: bool = False) -> None:
    how = ", renewed" if renewed else ""
    click.echo(f"{identity.role.value:<18}{place} ({identity.name}, until {end:%Y-%m-%d}{how})")


def _addresses() -> list[str]:
    """Those of this machine by which others can reach it."""
    import psutil

    with contextlib.suppress(OSError):
        texts = [each.address for every in psutil.net_if_addrs().values() for each in every]
        return [text for text in texts if _is_reached_by_others(text)]
    return []


def _is_reached_by_others(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # of another kind, or of one interface alone
        return False
    return not (address.is_loopback or address.is_link_local)


@contextlib.contextmanager
def _all_or_nothing(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Removes the files in the list, and folders that are new, where something goes wrong meanwhile."""
    made: list[Path] = []
    there = [folder for folder in folders if folder.exists()]
    try:
        yield made
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        for folder in folders:
            if folder not in there:
                with contextlib.suppress(OSError):  # it was not made, or somebody else put something there
                    folder.rmdir()
        raise


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.strip("[]").lower() for name in names if name))


def _is_host(name: str) -> bool:
    try:
        alternative_name(name)
    except CertificateError:
        return False
    return True


def _name(text: str) -> str:
    """A name for a certificate, whatever users and machines are called."""
    return check_name(re.sub(r"[^A-Za-z0-9._-]", "-", text).strip("._-")[:128].rstrip("._-") or "nhop")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user that the system does not know by name
        return f"uid-{os.getuid()}"


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except CertificateError as error:
        cause = error.__cause__
        passing = isinstance(cause, OSError) and cause.errno in _PASSING
        raise (NhopError if passing else UsageError)(str(error)) from error
