"""What of a folder goes along to hosts."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace

import pytest

from coordinator.domain import Sources
from coordinator.folders import CODE_RULES, DATA_RULES, PackError, human, walk


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "project"


def fill(folder, *files, **texts):
    """Files with a byte each, or with their texts."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts.get(name, "x"))


def names(folder, rules=CODE_RULES, notes=None, **sources):
    found = walk("code", folder, rules, Sources(**sources), [] if notes is None else notes)
    return [entry.name for entry in found if not entry.folder]


def refusal(folder, rules=CODE_RULES, **sources):
    with pytest.raises(PackError) as error:
        names(folder, rules, **sources)
    assert str(error.value).startswith(f"code: {folder}")
    assert "\n" not in str(error.value)
    return str(error.value)


def deny(monkeypatch, denied):
    """Nobody may look at that path, as the owner of the tests often may."""
    look = os.stat

    def stat(path, *arguments, **options):
        if os.fspath(path) == str(denied):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_files_come_in_order_of_their_names_folders_included(folder):
    fill(folder, "b.py", "a/c.py", "a/b.py", "a.py")
    (folder / "empty").mkdir()
    found = walk("code", folder, CODE_RULES, Sources(), [])
    assert [entry.name for entry in found] == ["a", "a/b.py", "a/c.py", "a.py", "b.py", "empty"]


def test_what_no_host_needs_is_left_out(folder):
    fill(folder, "mine.py", ".git/config", "a/__pycache__/b.pyc", "c.pyc", ".venv/x", "venv/x")
    fill(folder, "node_modules/x", ".ipynb_checkpoints/x")
    assert names(folder) == ["mine.py"]


@pytest.mark.parametrize("rules", [CODE_RULES, DATA_RULES])
def test_keys_to_other_machines_stay_here(folder, rules):
    fill(folder, "mine.py", ".ssh/id_ed25519", ".aws/credentials", ".netrc", ".config/gcloud/x", ".config/y")
    (folder / ".nhopignore").write_text("!.ssh/\n")
    assert names(folder, rules) == [".config/y", ".nhopignore", "mine.py"]


def test_a_home_that_is_sent_is_said(folder, monkeypatch):
    fill(folder, "mine.py")
    notes = []
    monkeypatch.setenv("HOME", str(folder.parent))
    assert (names(folder, notes=notes), notes) == (["mine.py"], [])
    monkeypatch.setenv("HOME", str(folder))
    assert names(folder, notes=notes) == ["mine.py"]
    assert "is your home: all that is in it goes to the hosts" in notes[0]


def test_an_ignore_file_is_obeyed(folder):
    fill(folder, "mine.py", "big.csv", "small.csv", "a/data/x", "data/x", "note.md")
    (folder / ".nhopignore").write_text("*.csv\n!small.csv\n/data/\n# note.md\n")
    assert names(folder) == [".nhopignore", "a/data/x", "mine.py", "note.md", "small.csv"]


def test_a_gitignore_counts_where_there_is_no_other(folder):
    fill(folder, "mine.py", "a.csv", "b.txt")
    (folder / ".gitignore").write_text("*.csv\n")
    assert names(folder) == [".gitignore", "b.txt", "mine.py"]
    (folder / ".nhopignore").write_text("*.txt\n")
    assert names(folder) == [".gitignore", ".nhopignore", "a.csv", "mine.py"]


def test_data_that_git_does_not_keep_goes_along(folder):
    fill(folder, "a.csv", "b.csv")
    (folder / ".gitignore").write_text("*.csv\n")
    assert names(folder, DATA_RULES) == [".gitignore", "a.csv", "b.csv"]
    (folder / ".nhopignore").write_text("b.csv\n")
    assert "b.csv" not in names(folder, DATA_RULES)


def test_an_ignore_file_that_is_none_is_named(folder):
    fill(folder, "mine.py")
    (folder / ".nhopignore").write_text("!\n")
    with pytest.raises(PackError, match=r"\.nhopignore: .*'!'"):
        names(folder)


def test_a_model_that_is_ignored_is_an_error(folder):
    fill(folder, "mine.py", "other.py")
    (folder / ".gitignore").write_text("mine.py\n")
    refused = refusal(folder, module="mine")
    assert "mine.py, which nn_model names, is left out by .gitignore; write what is to be left out" in refused
    (folder / ".nhopignore").write_text("mine.py\n")
    refused = refusal(folder, module="mine")
    assert f"is left out by .nhopignore; correct {folder}/.nhopignore" in refused
    assert "other.py" in names(folder, module="other")


def test_results_are_left_out(folder, tmp_path):
    fill(folder, "mine.py", "runs/s1/study.db", "runs/x", "old/study.db", "old/config.yaml", "out/x")
    runs = (folder / "runs", folder / "out", tmp_path)
    assert names(folder, runs=runs) == ["mine.py"]


def test_a_package_of_the_name_of_the_results_is_none(folder):
    fill(folder, "runs/__init__.py")
    assert names(folder, runs=(folder / "runs",)) == ["runs/__init__.py"]


def test_a_folder_that_holds_all_results_itself_is_not_left_out(folder):
    fill(folder, "mine.py")
    assert names(folder, runs=(folder,)) == ["mine.py"]


def test_a_link_within_the_folder_is_a_copy(folder):
    fill(folder, "a/x.py")
    (folder / "y.py").symlink_to("a/x.py")
    (folder / "b").symlink_to("a")
    assert names(folder) == ["a/x.py", "b/x.py", "y.py"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "nothing", ".", "loop"])
def test_other_links_are_left_out_and_said(folder, target):
    fill(folder, "a.py")
    fill(folder.parent, "outside")
    (folder / "loop").symlink_to(target)
    notes = []
    assert names(folder, notes=notes) == ["a.py"]
    (note,) = notes
    assert "not sent: loop (a link" in note


def test_a_link_to_where_one_may_not_look_is_left_out_and_said(folder, monkeypatch):
    fill(folder, "a.py")
    (folder / "theirs").symlink_to(folder.parent / "theirs" / "x")
    deny(monkeypatch, folder.parent / "theirs" / "x")
    notes = []
    assert names(folder, notes=notes) == ["a.py"]
    assert "theirs (a link that leads out of the folder)" in notes[0]


def test_what_the_user_leaves_out_is_not_said(folder):
    fill(folder, "a.py")
    for name in ("outside", "nothing"):
        (folder / name).symlink_to(f"/no/{name}")
    (folder / ".nhopignore").write_text("outside\nnothing/\n")
    notes = []
    assert names(folder, notes=notes) == [".nhopignore", "a.py"]
    assert notes == []


@pytest.mark.parametrize("name", ["mine.py", "mine"])
def test_a_model_that_is_a_link_out_of_the_folder_is_an_error(folder, name):
    fill(folder, "a.py")
    fill(folder.parent, f"shared/{name}")
    (folder / name).symlink_to(f"../shared/{name}")
    message = refusal(folder, module="mine")
    assert f"{name}, which nn_model names, is a link that leads out of the folder" in message
    (folder / ".nhopignore").write_text("mine*\n")
    assert f"{name}, which nn_model names, is left out by .nhopignore" in refusal(folder, module="mine")


def test_links_to_each_other_end(folder):
    fill(folder, "a/x", "b/y")
    (folder / "a" / "b").symlink_to("../b")
    (folder / "b" / "a").symlink_to("../a")
    assert names(folder) == ["a/b/y", "a/x", "b/a/x", "b/y"]


def test_what_is_no_file_is_left_out_and_said(folder, monkeypatch):
    fill(folder, "a.py")
    os.mkfifo(folder / "fifo")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
        notes = []
        assert names(folder, notes=notes) == ["a.py"]
    assert "fifo (a socket, FIFO or device), sock (a socket" in notes[0]


def test_too_many_bytes_are_known_from_their_sizes(folder):
    fill(folder, "a.py", "data/b.csv")
    with (folder / "data" / "large.bin").open("wb") as file:
        file.truncate(5 << 30)
    message = refusal(folder)
    for words in ("more than 100.0 MiB", "5.0 GiB in", "largest: data/ 5.0 GiB, a.py 1 bytes", ".nhopignore"):
        assert words in message


def test_too_many_files_are_refused(folder):
    fill(folder, *(f"many/{number}" for number in range(20)))
    assert "more than 10 files and folders" in refusal(folder, replace(CODE_RULES, most_entries=10))


def test_links_that_multiply_are_refused_soon(folder):
    fill(folder, "l30/x")
    for level in range(30):
        (folder / f"l{level}").mkdir()
        for link in "ab":
            (folder / f"l{level}" / link).symlink_to(f"../l{level + 1}")
    assert "more than 10,000 files and folders" in refusal(folder)


def test_deep_folders_are_refused(folder):
    (folder / "/".join("d" * 150)).mkdir(parents=True)
    assert "folders deep" in refusal(folder)


def test_what_cannot_be_read_is_named(folder, monkeypatch):
    fill(folder, "a.py", "b/secret.py")
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("secret.py"))
    assert "cannot be read: b/secret.py; change their permissions" in refusal(folder)


def test_what_cannot_even_be_looked_at_is_named_or_left_out(folder, monkeypatch):
    """As a folder that is mounted, and its server gone."""
    fill(folder, "a.py", "mounted")
    deny(monkeypatch, folder / "mounted")
    assert "cannot be read: mounted; change their permissions, or leave them out" in refusal(folder)
    (folder / ".nhopignore").write_text("/mounted/\n")
    assert names(folder) == [".nhopignore", "a.py"]


def test_nothing_to_send_is_an_error(folder):
    fill(folder, "a.pyc")
    assert "holds no file" in refusal(folder)


def test_a_folder_that_has_gone(folder):
    assert "No such file" in refusal(folder)


def test_data_within_the_code_goes_along_once(folder):
    fill(folder, "mine.py", "data/t.csv", "other/t.csv")
    assert names(folder, data=folder / "data") == ["mine.py", "other/t.csv"]
    assert names(folder, data=folder / "data" / "t.csv") == ["mine.py", "other/t.csv"]
    assert names(folder, data=folder) == ["data/t.csv", "mine.py", "other/t.csv"]


def test_a_file_alone(folder):
    fill(folder, "t.csv", "u.csv")
    assert names(folder / "t.csv", DATA_RULES) == ["t.csv"]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB")]
)
def test_bytes_in_words(size, text):
    assert human(size) == text
