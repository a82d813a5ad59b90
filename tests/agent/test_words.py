"""``nhop-agent`` as users meet it where something is wrong: one line, and the right exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.words import run
from tests.certificates import AGENT, CLIENT, Office


@pytest.fixture(autouse=True)
def no_certificate_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NHOP_TLS", raising=False)


def told(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> list[str]:
    """The lines that a command which fails says."""
    with pytest.raises(SystemExit) as ended:
        run([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (status, "")
    return err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--listen", "192.0.2.7:7001"],
            "--listen: '192.0.2.7:7001' is not on loopback: without TLS anyone",
        ),
        (["--insecure", "--listen", "0.0.0.0:7001"], "--listen: '0.0.0.0:7001' is every interface"),
        (["--insecure", "--listen", "192.0.2.7:7001", "--tls", "x"], "--tls and --insecure: one of them"),
        (["--listen", "192.0.2.7:7001", "--tls", "/nowhere"], "--tls: /nowhere/ca.crt: is missing"),
    ],
)
def test_what_is_refused_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (line,) = told(capsys, *arguments)
    assert line.startswith(f"nhop-agent: {message}")


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        ([], "nhop-agent", "Missing option '--listen'"),
        (["--listen", "127.0.0.1:7001", "--advertise", "node:7001"], "nhop-agent", "--advertise"),
        (["instal"], "nhop-agent", "there is no nhop-agent 'instal', only: firewall, install"),
        (["--listen", "127.0.0.1:7001", "install"], "nhop-agent", "(install)"),
        (["firewall", "x"], "nhop-agent firewall", "(x)"),
        (["install", "--command", "opt/x"], "nhop-agent install", "must be an absolute path"),
    ],
)
def test_wrong_usage_says_where_help_is(
    capsys: pytest.CaptureFixture[str], arguments: list[str], name: str, message: str
) -> None:
    line, see = told(capsys, *arguments)
    assert line.startswith(f"{name}: ")
    assert message in line
    assert see == f"{name}: see {name} --help"


def test_a_certificate_that_the_environment_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = Office(tmp_path)
    monkeypatch.setenv("NHOP_TLS", str(office.issue(CLIENT, "carol")))
    (line,) = told(capsys, "--listen", "192.0.2.7:7001")
    assert line.startswith(f"nhop-agent: NHOP_TLS: {tmp_path}")
    assert "is the certificate of client carol" in line
    monkeypatch.setenv("NHOP_TLS", str(office.issue(AGENT, "a")))
    (line,) = told(capsys, "--listen", "192.0.2.7:7001", "--insecure")
    assert line == "nhop-agent: NHOP_TLS and --insecure: one of them, not both"
