from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.cli import Words
from coordinator.errors import UsageError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", Words()),
        ("study.yaml", Words(study=Path("study.yaml"))),
        ("with a=1 b=2", Words(overrides=("a=1", "b=2"))),
        ("study.yaml with a=1", Words(study=Path("study.yaml"), overrides=("a=1",))),
        ("print_config", Words(print_config=True)),
        ("print_config study.yaml with a=1", Words(True, Path("study.yaml"), ("a=1",))),
        ("./with", Words(study=Path("with"))),
    ],
)
def test_words_are_sorted(words, expected):
    assert Words.parse(words.split()) == expected


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("a.yaml b.yaml", "one study file"),
        ("a.yaml seed=1", "with seed=1"),
        ("seed=1", "with seed=1"),
        ("with", "KEY=VALUE"),
        ("a.yaml print_config", "one study file"),
    ],
)
def test_words_that_do_not_fit_together(words, hint):
    with pytest.raises(UsageError, match=hint):
        Words.parse(words.split())


def test_a_file_may_have_a_name_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.yaml").write_text("seed: 1")
    assert Words.parse(["lr=1.yaml"]).study == Path("lr=1.yaml")
