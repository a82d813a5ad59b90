"""Why a connection did not come about, as far as it has to do with TLS, in the caller's words."""

from __future__ import annotations

_ISSUE = "nhop-coordinator certs issue"
_ONE = ": issue both sides' in the same place, where `nhop-coordinator certs init` was run once"
_TLS = (
    (
        "Hostname Verification Check failed",
        "its certificate is not for that name or address: it is that of another host, or has to be issued "
        "again for this one (" + _ISSUE + ")",
    ),
    (
        "certificate has expired",
        "its certificate has expired; " + _ISSUE + " a new one, or is this clock wrong?",
    ),
    ("certificate is not yet valid", "its certificate is not valid yet; is this clock right?"),
    ("unsupported certificate purpose", "its certificate is that of a client, not of a server"),
    ("unable to get local issuer", "its certificate is of another authority than our ca.crt" + _ONE),
    ("self-signed certificate", "its certificate is of no authority that our ca.crt has" + _ONE),
    ("self signed certificate", "its certificate is of no authority that our ca.crt has" + _ONE),
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
        "it ends the connection at once: it speaks TLS, probably; use --tls FOLDER (our certificate), not "
        "--insecure"
    )
