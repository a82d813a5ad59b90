"""What nobody means to commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.files import MOST_BYTES, look, main

KEY = b"-----BEGIN EC " + b"PRIVATE KEY-----\n"  # in two pieces: this file is looked at, too


@pytest.mark.parametrize(
    "data",
    [b"", b"x\n", b"a = 1\n\nb = 2\n", b"\0\xff binary ", b"PRIVATE KEY\n", b"======= \n"[:7] + b"x\n"],
)
def test_what_is_fine(data: bytes) -> None:
    assert list(look("file", data)) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"x \n", "file:1: white space"),
        (b"x\ny\t\n", "file:2: white space"),
        (b"x\r\n", "file:1: white space"),
        (b"x", "file: must end with one line feed"),
        (b"x\n\n", "file: must end with one line feed"),
        (b"x\n" + b"<" * 7 + b" HEAD\n", "file:2: a mark of a merge"),
        (b"x\n" + KEY, "file:2: looks like a private key"),
        (b"\0" + KEY, "file:1: looks like a private key"),
        (b"key: AKIA" + b"A" * 16 + b"\n", "file:1: looks like a private key or a token"),
        (b"\0" * (MOST_BYTES + 1), "file: has 1,048,577 bytes"),
    ],
)
def test_what_is_not(data: bytes, problem: str) -> None:
    (found,) = look("file", data)
    assert found.startswith(problem)


def test_what_is_generated_is_as_its_generator_writes_it() -> None:
    assert list(look("nhop/v1/types_pb2.py", b"x \n\n")) == []
    assert len(list(look("nhop/v1/types_pb2.py", KEY))) == 1


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_bytes(b"x")
    (tmp_path / "good").write_bytes(b"x\n")
    assert main([str(tmp_path / name) for name in ("good", "gone")]) == 0
    assert main([str(tmp_path / name) for name in ("good", "bad")]) == 1
    assert "bad: must end" in capsys.readouterr().err
