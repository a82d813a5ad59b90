"""What the project is made of, and that it would be seen if it were not so."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools import supply

HASH = "--hash=sha256:" + "0" * 64


def test_what_nhop_is_made_of() -> None:
    assert supply.check() == []


def test_a_lock_holds_pinned_packages_with_hashes() -> None:
    text = f"a-b==1.0 \\\n    {HASH} \\\n    {HASH}\nC==2 ; python_version > '3' \\\n    {HASH}\n# comment\n"
    assert supply.read_lock(text) == ({"a-b": Version("1.0"), "c": Version("2")}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a==1.0\n", "a has no SHA-256"),
        ("a==1.0 \\\n    --hash=md5:00\n", "a has no SHA-256"),
        (f"a>=1.0 \\\n    {HASH}\n", "not a pinned package: a>=1.0"),
        ("git+https://host/a\n", "not a pinned package: git"),
        ("--extra-index-url https://host\n", "not a pinned package: --extra-index-url"),
    ],
)
def test_a_lock_that_is_not_as_it_must_be(text: str, problem: str) -> None:
    assert problem in "\n".join(supply.read_lock(text)[1])


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("click>=8", ""),
        ("Click", ""),
        ("none; python_version < '3'", ""),
        ("none", "not in requirements.lock"),
        ("click>=9", "is locked at 8.1"),
    ],
)
def test_what_is_named_must_be_locked(requirement: str, problem: str) -> None:
    found = list(supply.check_wanted({"click": Version("8.1")}, [Requirement(requirement)]))
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_what_is_installed_must_be_what_is_locked() -> None:
    (problem,) = supply.check_installed({"click": Version("0.1")})
    assert "locked at 0.1" in problem


def test_what_is_imported_must_be_named() -> None:
    named = {"protobuf", "grpcio", "tensorflow"}
    problems = "\n".join(supply.check_imports(named, named))
    assert "imports click (click), which pyproject.toml does not name" in problems
    assert "imports google.rpc" in problems
    for module in ("grpc (", "google.protobuf", "keras", "coordinator", "tests.", "asyncio"):
        assert f"imports {module}" not in problems


def test_licences_of_what_comes_along_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(supply.check_licences([Requirement("rich")])) == []
    monkeypatch.setattr(supply, "LICENCES", supply.re.compile("none"))
    names = [problem.partition(":")[0] for problem in supply.check_licences([Requirement("rich")])]
    assert {"rich", "pygments", "markdown-it-py"} <= set(names)


REPORT = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]},
        {"name": "c", "skip_reason": "not found"},
    ]
}


def test_vulnerabilities_and_what_is_not_known_are_told_apart() -> None:
    assert supply.judge(REPORT) == (["b 2: PYSEC-1, fixed in 3"], ["c"])


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        (json.dumps(REPORT), ["b 2: PYSEC-1", "no advisory was seen of 1 packages (c)"]),
        ("", ["no advisory was seen: pip-audit failed (cannot connect)"]),
        (json.dumps({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}), []),
    ],
)
def test_an_audit_without_an_answer_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdout: str, words: list[str]
) -> None:
    def run(command: Any, **options: Any) -> Any:
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 0, stdout, "Traceback\ncannot connect\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert supply.main("audit") == bool(words)
    err = capsys.readouterr().err
    for word in words:
        assert f"audit: {word}" in err


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert supply.main("nothing") == 2
    assert "usage" in capsys.readouterr().err
