"""``nhop-coordinator certs`` as users meet it."""

from __future__ import annotations

import errno
import getpass
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from coordinator import cli
from nhop.security.folder import TlsFiles, load
from nhop.security.identity import Role
from tests.certificates import AGENT, CLIENT, COORDINATOR, DAY, Office, utc_now

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command; its status, what it printed, what it said is wrong. ``--dir`` is put behind it."""

    def run(*words: object, folder: Path | None = None) -> tuple[int, str, str]:
        place = () if folder is None else ("--dir", folder)
        status = cli.run(["certs", *map(str, words), *map(str, place)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def certs(run: Run, tmp_path: Path) -> Path:
    """A folder in which init was run."""
    folder = tmp_path / "certs"
    status, _, err = run("init", folder=folder)
    assert (status, err) == (0, "")
    return folder


def read(folder: Path) -> TlsFiles:
    return load(folder, frozenset(Role), utc_now())


def test_init_makes_what_its_user_needs(certs: Path) -> None:
    assert {path.name for path in certs.iterdir()} == {"ca.crt", "ca.key", "coordinator", "client"}
    coordinator, client = read(certs / "coordinator"), read(certs / "client")
    assert (coordinator.identity.role, client.identity.role) == (COORDINATOR, CLIENT)
    assert coordinator.identity.name == client.identity.name
    assert {"localhost", "127.0.0.1", "::1"} <= set(coordinator.hosts)
    assert client.hosts == ()
    assert 364 * DAY < coordinator.end - utc_now() <= 365 * DAY


def test_init_says_what_comes_next(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("init", folder=tmp_path / "certs")
    assert "keep it here" in out
    assert out.splitlines()[-1] == "next: nhop-coordinator certs issue --hosts hosts.txt"


def test_init_takes_more_hosts(run: Run, tmp_path: Path) -> None:
    run("init", "10.0.0.1", "Head.lan", "[fd00::1]", folder=tmp_path / "c")
    assert {"10.0.0.1", "head.lan", "fd00::1"} <= set(read(tmp_path / "c" / "coordinator").hosts)


def test_init_twice(run: Run, certs: Path) -> None:
    before = {path: path.read_bytes() for path in certs.rglob("*") if path.is_file()}
    status, out, err = run("init", folder=certs)
    assert (status, out) == (2, "")
    assert err == (
        f"nhop-coordinator: {certs}/ca.crt: is there already, and certificates that it has signed may be in "
        f"use: `certs issue` makes more. To begin anew choose another --dir, or move {certs} away\n"
    )
    assert {path: path.read_bytes() for path in certs.rglob("*") if path.is_file()} == before


def test_init_names_the_addresses_by_which_others_reach_this_machine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ("127.0.0.1", "10.0.0.5", "::1", "fd00::5", "fe80::1%eth0", "169.254.3.4", "02:42:ac:11:00:02")
    found = {"eth0": [SimpleNamespace(address=text) for text in texts]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    assert run("init", folder=tmp_path / "c")[0] == 0
    hosts = read(tmp_path / "c" / "coordinator").hosts
    assert set(texts) & set(hosts) == {"127.0.0.1", "10.0.0.5", "::1", "fd00::5"}


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (OSError(errno.EROFS, "no"), 2),
        (KeyboardInterrupt, 130),
    ],
)
def test_init_that_is_cut_short_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException, status: int
) -> None:
    written = iter(range(1, 9))

    def full(_: int) -> None:
        if next(written) == number:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found, out, err = run("init", folder=tmp_path / "certs")
    assert (found, out) == (status, "")
    assert len(err.split("\n")) == 2
    assert bool(err.strip()) == (status != 130)
    assert list(tmp_path.iterdir()) == []
    assert run("init", folder=tmp_path / "certs")[0] == 0


def test_init_spares_a_certificate_that_came_from_elsewhere(run: Run, tmp_path: Path) -> None:
    folder = Office(tmp_path / "office").issue(COORDINATOR, "bob", place=tmp_path / "certs" / "coordinator")
    before = read(folder)
    status, out, err = run("init", folder=tmp_path / "certs")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{folder}: holds a certificate already" in err
    assert read(folder) == before
    assert not (tmp_path / "certs" / "ca.key").exists()


def test_init_makes_nothing_where_a_host_is_wrong(run: Run, tmp_path: Path) -> None:
    status, _, err = run("init", "bad_host!", folder=tmp_path / "certs")
    assert status == 2
    assert err == "nhop-coordinator: 'bad_host!' is neither the name nor the address of a host\n"
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize(
    ("user", "machine", "name"),
    [
        ("alice", "head", "alice.head"),
        ("DOM\\a b", "head.lan", "DOM-a-b.head.lan"),
        ("_svc", "my_head", "svc.my_head"),
        ("ålice", "h" * 64, "lice." + "h" * 64),
        ("u" * 200, "head", "u" * 128),
    ],
)
def test_whatever_users_and_machines_are_called(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, machine: str, name: str
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    monkeypatch.setattr(socket, "getfqdn", lambda: "not a host at all")
    status, _, err = run("init", folder=tmp_path / "c")
    assert (status, err) == (0, "")
    assert read(tmp_path / "c" / "coordinator").identity.name == name


def test_the_default_place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run("init")[0] == 0
    assert (tmp_path / "nhop" / "certs" / "ca.key").exists()
    assert run("issue", "agent", "gpu-1")[0] == 0
    assert "agents/gpu-1/tls.crt: agent gpu-1 at gpu-1" in run("show")[1]


# --- issue ----------------------------------------------------------------------------------------


def test_issue_for_a_hosts_file(run: Run, certs: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("GPU-1:7001 slots=2\n# no\n10.0.0.2\n[fd00::3]:7002\nunix:/run/x.sock\n10.0.0.2:7002\n")
    status, out, err = run("issue", "--hosts", hosts, folder=certs)
    assert (status, err) == (0, "")
    assert {path.name for path in (certs / "agents").iterdir()} == {"gpu-1", "10.0.0.2", "fd00::3"}
    for path in (certs / "agents").iterdir():
        files = read(path)
        assert files.identity.role is AGENT
        assert files.hosts == (path.name,)
        assert str(path) in out
    assert out.splitlines()[-1].startswith("next: copy each folder (ca.crt, tls.crt, tls.key) to its host")


def test_issue_again_with_another_host_tells_new_ones_from_renewed_ones(
    run: Run, certs: Path, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("10.0.0.1\n")
    _, out, _ = run("issue", "--hosts", hosts, folder=certs)
    assert "renewed" not in out
    hosts.write_text("10.0.0.1\n10.0.0.2\n")
    _, out, _ = run("issue", "--hosts", hosts, folder=certs)
    first, second, _, last = out.splitlines()
    assert first.endswith(", renewed)")
    assert "renewed" not in second
    assert last.startswith("renewed: hosts may keep their earlier certificates until these end")


def test_issue_for_a_hosts_file_that_is_wrong(run: Run, certs: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    for text, said in (
        ("a b c\n", f"{hosts}:1: unknown word"),
        ("unix:/run/x.sock\n", "lists no host that is reached over a network"),
        ("../etc\n", f"{hosts}:1: "),
    ):
        hosts.write_text(text)
        status, _, err = run("issue", "--hosts", hosts, folder=certs)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    assert not (certs / "agents").exists()
    status, _, err = run("issue", "--hosts", tmp_path / "nowhere", folder=certs)
    assert (status, err.count("\n")) == (2, 1)


def test_issue_by_name(run: Run, certs: Path) -> None:
    run("issue", "agent", "gpu-1", "10.0.0.11", "GPU-1.lan", folder=certs)
    run("issue", "coordinator", "bob", folder=certs)
    run("issue", "client", "carol", "--days", "7", folder=certs)
    assert read(certs / "agents" / "gpu-1").hosts == ("10.0.0.11", "gpu-1.lan")
    assert read(certs / "coordinators" / "bob").hosts == ("bob",)
    carol = read(certs / "clients" / "carol")
    assert carol.hosts == ()
    assert carol.end < utc_now() + 8 * DAY


def test_a_renewal_keeps_place_name_and_hosts(run: Run, certs: Path) -> None:
    run("issue", "agent", "gpu-1", "10.0.0.11", folder=certs)
    before = read(certs / "agents" / "gpu-1"), read(certs / "coordinator")
    name = before[1].identity.name
    run("issue", "agent", "gpu-1", folder=certs)
    run("issue", "coordinator", name, folder=certs)
    run("issue", "client", name, folder=certs)
    after = read(certs / "agents" / "gpu-1"), read(certs / "coordinator")
    assert [each.certificate for each in before] != [each.certificate for each in after]
    assert [(each.identity, each.hosts) for each in before] == [(each.identity, each.hosts) for each in after]
    assert not (certs / "coordinators").exists()
    assert not (certs / "clients").exists()
    run("issue", "agent", "gpu-1", "10.0.0.12", folder=certs)
    assert read(certs / "agents" / "gpu-1").hosts == ("10.0.0.12",)


def test_a_name_of_another_holder_is_not_taken_for_ours(run: Run, certs: Path) -> None:
    before = read(certs / "coordinator")
    run("issue", "coordinator", "eve", folder=certs)
    assert read(certs / "coordinator") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["agent", "../x"], "'../x' cannot be the name of a certificate"),
        (["agent", "a/b"], "cannot be the name of a certificate"),
        (["agent", ""], "cannot be the name of a certificate"),
        (["agent", "gpu-1", "nhop://agent/x"], "is neither the name nor the address of a host"),
        (["agent", "-h1"], "No such option"),
        (["agent", "1.2.3"], "'1.2.3' is neither the name nor the address of a host"),
        (["client", "carol", "10.0.0.1"], "a client is called by nobody: give no HOST"),
        (["agent"], "what is to be issued?"),
        ([], "what is to be issued?"),
        (["root", "x"], "'root' is not one of"),
        (["agent", "x", "--hosts", "hosts.txt"], "give no ROLE and NAME with it"),
        (["agent", "x", "--days", "0"], "--days"),
        (["agent", "x", "--days", "826"], "--days"),
    ],
)
def test_what_is_not_issued(run: Run, certs: Path, words: list[str], said: str) -> None:
    before = sorted(certs.rglob("*"))
    status, out, err = run("issue", *words, folder=certs)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[0]
    assert sorted(certs.rglob("*")) == before


def test_issue_without_an_authority(run: Run, tmp_path: Path) -> None:
    status, _, err = run("issue", "agent", "x", folder=tmp_path / "nowhere")
    assert status == 2
    assert err == (
        f"nhop-coordinator: {tmp_path}/nowhere: there is no authority; make one with: nhop-coordinator "
        "certs init\n"
    )


def test_an_authoritys_key_that_others_can_read_is_not_used(run: Run, certs: Path) -> None:
    (certs / "ca.key").chmod(0o640)
    status, _, err = run("issue", "agent", "x", folder=certs)
    assert (status, err.count("\n")) == (2, 1)
    assert "others can read this key (mode 0640)" in err
    assert not (certs / "agents").exists()


def test_an_authority_that_ends_soon_is_said(run: Run, tmp_path: Path) -> None:
    office = Office(tmp_path, begun=3650 - 100)
    status, out, _ = run("issue", "agent", "x", folder=office.authority.folder)
    assert status == 0
    assert "note: the authority itself ends on" in out


# --- show -----------------------------------------------------------------------------------------


def test_show(run: Run, certs: Path) -> None:
    run("issue", "agent", "gpu-1", "10.0.0.11", folder=certs)
    status, out, err = run("show", folder=certs)
    assert (status, err) == (0, "")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == ["agents/gpu-1/tls.crt", "ca.crt", "client/tls.crt", "coordinator/tls.crt"]
    assert re.fullmatch(
        r"agent gpu-1 at 10\.0\.0\.11, until \d{4}-\d\d-\d\d \(36[45] days\)", lines["agents/gpu-1/tls.crt"]
    )


def test_show_marks_what_has_expired(run: Run, tmp_path: Path) -> None:
    office = Office(tmp_path)
    office.issue(AGENT, "old", begun=400 * DAY, place=office.authority.folder / "agents" / "old")
    office.issue(AGENT, "new", begun=-2 * DAY, place=office.authority.folder / "agents" / "new")
    status, out, _ = run("show", folder=office.authority.folder)
    assert status == 1
    assert "agents/old/tls.crt: agent old at 127.0.0.1, ::1, localhost, EXPIRED on " in out
    assert "agents/new/tls.crt: agent new at 127.0.0.1, ::1, localhost, valid only from " in out


def test_show_lists_every_authority_that_is_trusted(run: Run, tmp_path: Path) -> None:
    new, old = Office(tmp_path / "new", "new"), Office(tmp_path / "old", "old", begun=4000)
    folder = new.issue(AGENT, "a")
    (folder / "ca.crt").write_bytes(new.authority.trusted + old.authority.trusted)
    status, out, _ = run("show", folder)
    assert status == 1
    assert "ca.crt: CN=new, until" in out
    assert "ca.crt: CN=old, EXPIRED on" in out
    assert run("show", folder / "tls.crt")[0] == 0


def test_show_of_what_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("garbage")
    for words, said in (
        ([tmp_path / "x.crt"], f"{tmp_path}/x.crt: is no certificate in PEM"),
        ([tmp_path / "nowhere"], f"{tmp_path}/nowhere: cannot be read (No such file or directory)"),
        (["--dir", tmp_path / "nowhere"], f"{tmp_path}/nowhere: there is no certificate; make some with"),
    ):
        status, out, err = run("show", *words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_names_from_elsewhere_do_not_write_on_the_terminal(run: Run, tmp_path: Path) -> None:
    office = Office(tmp_path, "\x1b[31mred\n")
    _, out, _ = run("show", office.authority.folder / "ca.crt")
    assert "\x1b" not in out
    assert out.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be nobody then")
def test_a_folder_that_cannot_be_read(run: Run, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", denied)
    for words in (("init",), ("issue", "agent", "x"), ("show",)):
        status, _, err = run(*words, folder=certs)
        assert (status, err.count("\n")) == (2, 1), err
        assert "cannot be read (Permission denied)" in err
