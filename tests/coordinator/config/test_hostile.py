"""Configurations that nobody writes by hand: refused soon, in few words, and never with a traceback."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.config import load
from coordinator.config.keys import Keys
from coordinator.config.source import MOST_PROBLEMS
from coordinator.errors import ConfigError
from tests.hostile.messages import STRINGS
from tests.hostile.yaml_bombs import BOMBS

MOST_SECONDS = 10.0
"""Of the processor, for a megabyte: PyYAML needs most of it."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_in_few_words(name: str) -> None:
    text, words = BOMBS[name]
    begun = time.process_time()
    with pytest.raises(ConfigError) as refused:
        load(text, name="study.yaml")
    assert time.process_time() - begun < MOST_SECONDS
    assert words in str(refused.value)
    assert len(str(refused.value)) < 20_000
    assert len(refused.value.problems) <= MOST_PROBLEMS + 1


@pytest.mark.parametrize("name", ["laughs", "python tag", "unknown keys"])
def test_the_command_says_so_and_ends_with_2(tmp_path: Path, name: str) -> None:
    text, words = BOMBS[name]
    (tmp_path / "study.yaml").write_text(text)
    command = [sys.executable, "-m", "coordinator", "study.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", "9" * 390, "not a number of more than 308 digits"),
        ("batch_size", f"[1, {'9' * 390}]", "not a number of more than 308 digits"),
        ("code", "x" * 300, "names of at most 255 bytes"),
        ("code", "a/" * 2000, "at most 2,000 bytes"),
        ("code", "~nobody-of-that-name/x", "there is no home ~nobody-of-that-name"),
        ("data", "~nobody-of-that-name/x", "there is no home ~nobody-of-that-name"),
        ("python_path", '["/a", "~nobody-of-that-name"]', "there is no home ~nobody-of-that-name"),
        ("python_path", f"[{'/a,' * 200}]", "at most 100 folders"),
        ("load_data_dir", '"a\\0b"', "without a NUL"),
        ("train_log_dir", "~nobody-of-that-name", "there is no home"),
        ("search_space", f"{{{','.join(f'k{n}: [1, 2]' for n in range(1001))}}}", "at most 1,000 names"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_what_cannot_be_is_said(key: str, value: str, words: str, remote: bool) -> None:
    with pytest.raises(ConfigError, match="mine:Net|" + key) as refused:
        load(f"nn_model: mine:Net\nload_data: true\n{key}: {value}\n", remote=remote)
    assert words in str(refused.value)


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    with pytest.raises(ConfigError) as refused:
        load('"\\e[2J\\u202e": 1\nload_data: true\nload_data_dir: "/none/\\e]0;x\\a"\n')
    assert str(refused.value).isprintable() or "\n" in str(refused.value)
    assert not {"\x1b", "\x07", "\u202e"} & set(str(refused.value))


def test_the_first_problems_are_told_where_there_are_very_many() -> None:
    with pytest.raises(ConfigError) as refused:
        load({f"k{n}": 1 for n in range(MOST_PROBLEMS + 1)})
    assert len(refused.value.problems) == MOST_PROBLEMS + 1
    assert refused.value.problems[-1].message == "and perhaps more: correct these first"


_numbers = (
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63,
    10**400,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
)
_names = ("ps", "workers", "type", "low", "high", "options", "log", "step", "float", "int", "layers")
_leaves = st.sampled_from((*STRINGS, *_numbers, None, True, "~nobody/x", "/dev/zero", "/proc", "a/" * 900))
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from((*STRINGS, *_names)), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(sorted(Keys.model_fields)), _trees, min_size=1, max_size=3),
    st.booleans(),
)
def test_hostile_values_are_refused_or_make_a_study(values: dict[str, object], remote: bool) -> None:
    try:
        config = load(values, remote=remote)
    except ConfigError as error:
        assert len(str(error)) < 20_000
    else:
        config.to_spec("study")
        assert load(config.to_yaml(), remote=remote).to_spec("study", 1) == config.to_spec("study", 1)
