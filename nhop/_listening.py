"""Addresses: which are this machine's alone, and of listening what gRPC does not say."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

UNIX = "unix:"


def is_loopback(host: str) -> bool:
    """Whether a name or an address, IPv6 without brackets, reaches this machine from itself only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether an address, IPv6 without brackets, is every interface of a machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return not any(socket.inet_aton(host))  # "0" and "0x0", as what listens reads them
        except OSError:
            return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_unspecified


def is_local(target: str) -> bool:
    """Whether a gRPC target is on this machine, as far as its text tells."""
    return target.startswith(UNIX) or is_loopback(target.rpartition(":")[0].strip("[]"))


def bind_error(target: str) -> OSError | None:
    """Why nobody can listen at ``host:port``, IPv6 in brackets, or ``unix:/path``; None where one can."""
    path = Path(target.removeprefix(UNIX)) if target.startswith(UNIX) else None
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(socket.AF_UNIX if path else family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(str(path) if path else (host, int(port)))
    except OSError as error:
        return error
    if path is not None:
        path.unlink(missing_ok=True)
    return None


def is_served(path: Path) -> bool:
    """Whether somebody listens on a Unix socket: gRPC would silently take its place."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
