"""What `nhop-agent install` writes: files, what systemd thinks of them, and what it says of wrong uses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent import install_command
from agent.config import UsageError
from agent.install_command import install, this_installation
from agent.units import ENVIRONMENT, FIREWALL, HOSTS_DROP_IN, SYSUSERS, UNIT, Installation, is_edited, unit
from tests.users import ROOT, Users, is_hidden, needs_users, some_users

STANDARD = ("--command", "/opt/nhop/.venv/bin/nhop-agent")
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)"
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(install, list(map(str, arguments)))


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def listing(root: Path) -> set[Path]:
    return {Path("/") / path.relative_to(root) for path in root.rglob("*") if path.is_file()}


# --- what is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [(UNIT, "nhop-agent.service"), (ENVIRONMENT, "agent.env"), (SYSUSERS, "sysusers.conf")],
)
def test_the_files_of_this_repository_are_those_of_the_standard_installation(
    tmp_path: Path, path: Path, name: str
) -> None:
    assert run("--root", tmp_path, *STANDARD).exit_code == 0
    assert (ROOT / "deploy/systemd" / name).read_text() == below(tmp_path, path).read_text(), (
        f"write it with: nhop-agent install --root FOLDER {' '.join(STANDARD)}"
    )


def test_options_are_in_the_environment_file(tmp_path: Path) -> None:
    options = ("--listen", "10.0.0.5:7002", "--slots", 4, "--port-range", "3000-3999", "--advertise", "gpu-1")
    done = run("--root", tmp_path, *STANDARD, *options)
    lines = below(tmp_path, ENVIRONMENT).read_text().splitlines()
    assert "NHOP_LISTEN=10.0.0.5:7002" in lines
    assert "NHOP_TLS=/etc/nhop/tls" in lines
    assert "NHOP_OPTIONS=--slots 4 --port-range 3000-3999 --advertise gpu-1" in lines
    assert "systemctl enable --now nhop-agent" in done.stdout
    assert "/etc/nhop/tls" in done.stdout


def test_what_comes_next_is_said_where_it_is_to_be_done(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("10.0.0.5\n")
    off_loopback = ("--root", tmp_path / "root", *STANDARD, "--listen", "10.0.0.5:7001")
    bare, fenced = run(*off_loopback).stdout, run(*off_loopback, "--hosts", hosts).stdout
    for shown in (bare, fenced):
        assert "\nnext, as root, once these files are below / of the host:\n" in shown
    assert "without --hosts hosts.txt nothing fences the ports of tasks" in bare
    assert "nothing fences" not in fenced
    assert "nothing fences" not in run("--root", tmp_path / "loopback", *STANDARD).stdout


def test_on_loopback_no_certificates_are_needed(tmp_path: Path) -> None:
    done = run("--root", tmp_path, *STANDARD)
    assert "#NHOP_TLS=/etc/nhop/tls" in below(tmp_path, ENVIRONMENT).read_text()
    assert "tls" not in done.stdout


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    run("--root", tmp_path, *STANDARD)
    before = {path: below(tmp_path, path).stat().st_mtime_ns for path in listing(tmp_path)}
    done = run("--root", tmp_path, *STANDARD)
    assert {path: below(tmp_path, path).stat().st_mtime_ns for path in listing(tmp_path)} == before
    assert "wrote" not in done.stdout


def test_options_that_nobody_edited_are_replaced(tmp_path: Path) -> None:
    run("--root", tmp_path, *STANDARD)
    run("--root", tmp_path, *STANDARD, "--slots", 3)
    assert "NHOP_OPTIONS=--slots 3\n" in below(tmp_path, ENVIRONMENT).read_text()


def test_options_that_were_edited_are_kept(tmp_path: Path) -> None:
    run("--root", tmp_path, *STANDARD)
    path = below(tmp_path, ENVIRONMENT)
    edited = path.read_text().replace("127.0.0.1:7001", "10.0.0.9:7001")
    path.write_text(edited)
    done = run("--root", tmp_path, *STANDARD, "--slots", 3)
    assert path.read_text() == edited
    there = below(tmp_path, ENVIRONMENT)
    assert f"kept    {there}, which was edited; what it would be is in {there}.new" in done.stdout
    assert "NHOP_OPTIONS=--slots 3\n" in path.with_name("agent.env.new").read_text()


def test_options_may_hold_credentials_in_any_encoding(tmp_path: Path) -> None:
    run("--root", tmp_path, *STANDARD)
    path = below(tmp_path, ENVIRONMENT)
    assert path.stat().st_mode & 0o777 == 0o600
    edited = path.read_bytes() + "AWS_SECRET_ACCESS_KEY=é\n".encode("latin-1")
    path.write_bytes(edited)
    assert run("--root", tmp_path, *STANDARD).exit_code == 0
    assert path.read_bytes() == edited
    assert path.with_name("agent.env.new").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "NHOP_LISTEN=x\n", "# As `nhop-agent install` wrote it: 0000\n"])
def test_what_was_not_written_by_the_command_counts_as_edited(text: str) -> None:
    assert is_edited(text)


def test_hosts_give_rules_and_a_drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 169.254.169.254\nnameserver 10.0.0.53\n")
    monkeypatch.setattr(install_command, "RESOLVER_FILE", tmp_path / "resolv.conf")
    (tmp_path / "hosts.txt").write_text("10.1.0.2\n[fd00::2]:7001\n")
    root = tmp_path / "root"
    options = ("--root", root, *STANDARD, "--hosts", tmp_path / "hosts.txt", "--coordinator", "10.2.0.0/16")
    assert run(*options, "--listen", "10.1.0.1:7009", "--port-range", "3000-3999").exit_code == 0
    drop_in = below(root, HOSTS_DROP_IN).read_text()
    allowed = [line.partition("=")[2] for line in drop_in.splitlines() if line.startswith("IPAddressAllow=")]
    assert allowed == ["localhost", "10.1.0.2", "fd00::2", "10.2.0.0/16", "10.1.0.1", "10.0.0.53"]
    rules = below(root, FIREWALL).read_text()
    assert "tcp dport 3000-3999 drop" in rules
    assert "tcp dport 7009 ip saddr != @callers4 drop" in rules
    # Fences stay until somebody takes them away.
    done = run("--root", root, *STANDARD)
    assert below(root, HOSTS_DROP_IN).read_text() == drop_in
    assert f"kept    {below(root, HOSTS_DROP_IN)} of an earlier --hosts" in done.stdout


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path) -> None:
    done = run("--root", tmp_path, *STANDARD, "--dry-run")
    assert done.exit_code == 0
    for path in (UNIT, ENVIRONMENT, SYSUSERS):
        assert f"--- {path}\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_installation_below_home_can_be_read_by_the_service() -> None:
    assert "ProtectHome=yes\n" in unit(Installation(("/opt/nhop-agent",)))
    assert "ProtectHome=read-only\n" in unit(Installation(("/home/a/nhop-agent",), below_home=True))


def test_a_path_means_to_systemd_what_it_says() -> None:
    text = unit(Installation(("/opt/a b/50%/$x/nhop-agent",)))
    assert "ExecStart='/opt/a b/50%%/$$x/nhop-agent' --listen ${NHOP_LISTEN}" in text


# --- what systemd thinks of it --------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A unit that starts a program which is there, as systemd checks."""
    (tmp_path / "hosts.txt").write_text("10.1.0.2\n[fd00::2]:7001\n")
    command = tmp_path / "nhop-agent"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    root = tmp_path / "root"
    assert run("--root", root, "--command", command, "--hosts", tmp_path / "hosts.txt").exit_code == 0
    return root


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_analyze
def test_systemd_finds_no_fault_with_the_unit(installed: Path) -> None:
    done = analyze("verify", "--man=no", below(installed, UNIT))
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_analyze
@pytest.mark.parametrize("path", [UNIT, HOSTS_DROP_IN])
def test_systemd_would_find_a_fault(installed: Path, path: Path) -> None:
    with below(installed, path).open("a") as file:
        file.write("[Service]\nWatchdog=1\n")
    done = analyze("verify", "--man=no", below(installed, UNIT))
    assert "Unknown key 'Watchdog'" in done.stderr


@needs_analyze
def test_the_unit_exposes_little(installed: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=40", below(installed, UNIT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@needs_analyze
def test_the_threshold_is_one(installed: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=10", below(installed, UNIT))
    assert done.returncode != 0


# --- wrong use ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "unix:/run/x.sock"), "a service listens at an address"),
        (("--listen", "127.0.0.1:0"), "at a known port"),
        (("--listen", "nonsense"), "is not an address"),
        (("--coordinator", "10.0.0.1"), "--coordinator goes with --hosts"),
        (("--command", "nhop-agent"), "must be an absolute path"),
        (("--slots", "0"), "--slots"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("--root", tmp_path, *STANDARD, *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts", "/no/hosts.txt"), "the hosts file cannot be read"),
        (("--advertise", "a b"), "--advertise: 'a b' is not the name"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "agent", "install", "--root", str(tmp_path), *STANDARD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "etc").touch()
    command = [sys.executable, "-m", "agent", "install", "--root", str(tmp_path), *STANDARD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot write" in done.stderr


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    done = run(*STANDARD)
    assert isinstance(done.exception, UsageError)
    assert "must be run by root" in str(done.exception)


def test_an_installation_that_others_cannot_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(sys, "base_prefix", str(closed / "python"))
    with pytest.raises(UsageError, match=r"no other user can read .*closed/python, for .* is closed to them"):
        this_installation()


@needs_users
@pytest.mark.skipif(is_hidden(), reason="this checkout lies below /tmp, of which a service has its own")
@pytest.mark.parametrize(("folder", "message"), [("/opt", ""), ("/tmp", "temporary files of its own")])
def test_this_installation_is_what_the_unit_starts(folder: str, message: str) -> None:
    with some_users() as users:
        done = dry_run_from(users, folder)
    if message:
        assert done.returncode == 2
        assert message in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        start = next(line for line in done.stdout.splitlines() if line.startswith("ExecStart="))
        assert "nhop-agent --listen ${NHOP_LISTEN}" in start
        assert "ProtectHome=" in done.stdout


def dry_run_from(users: Users, folder: str) -> subprocess.CompletedProcess[str]:
    """With the source in a folder, in a mount namespace."""
    script = (
        f'mount -t tmpfs tmpfs {folder} && cp -a "{ROOT}/agent" "{ROOT}/nhop" "{ROOT}/nhop_models" {folder}'
    )
    inside = (*users.anybody(), "unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh")
    program = f"import sys; sys.path[:0] = [{folder!r}]; sys.argv = ['nhop-agent', 'install', '--dry-run']"
    program += "; import agent.__main__ as m; m.main()"
    command = [*inside, sys.executable, "-P", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
