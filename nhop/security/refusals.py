"""Why a connection did not come about, as far as it has to do with TLS, in the caller's words."""

from __future__ import annotations

_ISSUE = "nhop-coordinator certs issue"
_TLS = (
    (
        "Hostname Verification Check failed",
        "its certificate is not for that name or address: " + _ISSUE + " one that is",
    ),
    (
        "certificate has expired",
        "its certificate has expired; " + _ISSUE + " a new one, or is this clock wrong?",
    ),
    ("certificate is not yet valid", "its certificate is not valid yet; is this clock right?"),
    ("unsupported certificate purpose", "its certificate is that of a client, not of a server"),
    ("unable to get local issuer", "its certificate is of another authority than our ca.crt"),
    ("self-signed certificate", "its certificate is of no authority that our ca.crt has"),
    ("self signed certificate", "its certificate is of no authority that our ca.crt has"),
    ("WRONG_VERSION_NUMBER", "what listens there does not speak TLS; was it started with --insecure?"),
)
_CUT_OFF = ("Socket closed", "Connection reset", "Broken pipe", "EOF")
_NO_CONNECTION = "failed to connect"


def tls_problem(details: str, *, tls: bool) -> str:
    """What gRPC's words for a call that found no connection mean; empty where it is not TLS.

    ``tls``: whether we spoke TLS.
    """
    if tls:
        for sign, words in _TLS:
            if sign in details:
                return words
    if _NO_CONNECTION not in details or not any(sign in details for sign in _CUT_OFF):
        return ""
    if tls:
        return (
            "it ends the connection when it sees our certificate, and its log says why: is it of the same "
            "authority, and not expired by its clock?"
        )
    return (
        "it ends the connection at once: it speaks TLS, probably; name our certificate with --tls FOLDER, "
        "and leave --insecure out"
    )
