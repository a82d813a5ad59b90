"""What a caller is told of a connection that did not come about: gRPC's words, as they were seen, in ours."""

from __future__ import annotations

import pytest

from nhop.security.refusals import tls_problem

FAILED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7001: "


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("Hostname Verification Check failed.", "not for that name or address"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "has expired; nhop-coordinator certs issue"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "is this clock right?"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "another authority"),
        ("CERTIFICATE_VERIFY_FAILED: self-signed certificate", "of no authority"),
        ("CERTIFICATE_VERIFY_FAILED: unsupported certificate purpose", "that of a client"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "does not speak TLS"),
        ("recvmsg:Connection reset by peer", "its log says why"),
        ("Socket closed", "its log says why"),
    ],
)
def test_with_tls(details: str, words: str) -> None:
    assert words in tls_problem(FAILED + details, tls=True)


@pytest.mark.parametrize("details", ["Socket closed", "recvmsg:Connection reset by peer", "Broken pipe"])
def test_without_tls(details: str) -> None:
    assert "use --tls FOLDER (our certificate)" in tls_problem(FAILED + details, tls=False)


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    "details",
    ["", "Socket closed", FAILED + "Connection refused", FAILED + "No route to host", "Ping timeout"],
)
def test_what_is_none_of_tls(details: str, tls: bool) -> None:
    """A connection that breaks in the middle is none that was refused."""
    assert tls_problem(details, tls=tls) == ""


def test_what_tls_says_is_not_looked_for_without_it() -> None:
    assert tls_problem(FAILED + "certificate has expired", tls=False) == ""
