from __future__ import annotations

import os

import numpy as np
import pytest

from coordinator.config import load
from coordinator.config.source import read_text, scalar
from coordinator.errors import ConfigError


def problems(source, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.e-3", 1e-3),
        (".5", 0.5),
        ("-3", -3),
        ("10_000", 10000),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("12:30:00", "12:30:00"),
        ("2026-01-02", "2026-01-02"),
        ("1e", "1e"),
        ("relu", "relu"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_numbers_are_texts():
    assert read_text("a: '1e-5'\nb: \"2\"", "x").data == {"a": "1e-5", "b": "2"}


def test_malformed_yaml_has_its_line_and_column():
    (problem,) = problems("seed: 1\nopt_epoch: [1,\nbatch_size: 3]\n  x: }")
    assert problem.line in (3, 4)
    assert "column" in problem.message


@pytest.mark.parametrize(
    "text", ["seed: 1\na: [1,\n", "seed: 1\na: {b: \n\n\n", "seed: 1\na: 'x\n\n", "seed: 1\na: [1"]
)
def test_yaml_that_ends_too_early_has_the_line_that_is_not_complete(text):
    (problem,) = problems(text)
    assert problem.line == 2
    assert "ends before this is complete" in problem.message


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "null"])
def test_an_empty_text(text):
    (problem,) = problems(text)
    assert "is empty" in problem.message


@pytest.mark.parametrize("text", ["- 1\n- 2", "text", "3"])
def test_a_text_that_is_no_mapping(text):
    (problem,) = problems(text)
    assert "key: value" in problem.message


def test_a_key_given_twice():
    (problem,) = problems("seed: 1\ncluster:\n  ps: 1\n  ps: 2\n")
    assert (problem.key, problem.line) == ("cluster.ps", 4)
    assert "line 3" in problem.message


def test_a_second_document():
    (problem,) = problems("seed: 1\n---\nseed: 2\n")
    assert problem.line == 2


@pytest.mark.parametrize(
    "text",
    ["seed: !!python/object/apply:os.getcwd []", "seed: !!binary aGk=", "seed: !mine 3"],
)
def test_tags_are_refused(text):
    assert "tag" in problems(text)[0].message


def test_merging_is_refused():
    found = problems("seed: 1\n<<: {opt_epoch: 3}")
    assert [problem.line for problem in found] == [2]


@pytest.mark.parametrize("text", ["? [a]\n: 1\n", "{a: 1}: 2\n"])
def test_a_key_that_is_no_name(text):
    assert "a key must be a name" in problems(text)[0].message


def test_aliases_are_understood():
    config = load("hidden_layers: &range [4, 6]\nnodes_per_layer: *range\nseed: 1")
    assert config.space["hidden_layers"].nodes.high == 6


@pytest.mark.parametrize("text", ["seed: *nowhere", "opt_stages: &a [*a]"])
def test_aliases_that_lead_nowhere(text):
    assert problems(text)[0].line == 1


def test_aliases_cannot_grow_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (problem,) = problems("\n".join(lines))
    assert "values" in problem.message


@pytest.mark.parametrize("text", ["a: " + "[" * 5000 + "]" * 5000, "a: " + "{b: " * 900 + "1" + "}" * 900])
def test_depth_is_limited(text):
    (problem,) = problems(text)
    assert "deep" in problem.message


def test_size_is_limited(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text("seed: 1\n" + "# " + "x" * (1 << 20))
    assert "larger than 1024 KiB" in problems(file)[0].message


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: does not exist"):
        load(tmp_path / "none.yaml")


def test_a_folder(tmp_path):
    assert "is a folder" in problems(tmp_path)[0].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    file = tmp_path / "secret.yaml"
    file.write_text("seed: 1")
    file.chmod(0)
    assert "Permission denied" in problems(file)[0].message


def test_text_of_another_encoding(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("seed: 1\n# größe\n".encode("latin-1"))
    (problem,) = problems(file)
    assert (problem.line, "UTF-8" in problem.message) == (2, True)


@pytest.mark.parametrize("content", [b"seed: \x001", b"\x00" * 10, b"seed: '\x07'"])
def test_control_characters(tmp_path, content):
    file = tmp_path / "binary.yaml"
    file.write_bytes(content)
    assert "is not YAML" in problems(file)[0].message


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    file = tmp_path / "marked.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 7\r\nopt_epoch: 2\r\n")
    assert load(file).seed == 7


def test_a_problem_of_a_file_names_file_key_and_line(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("seed: 1\n\nopt_epoch: 0\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:3: opt_epoch: must be at least 1, not 0"


def test_overrides_go_over_the_file():
    config = load("opt_epoch: 3\ncluster: {ps: 2, workers: 4}", ["opt_epoch=5", "cluster.ps=1", "seed=3"])
    assert (config.stages[0].opt_epoch, config.cluster.ps, config.cluster.workers) == (5, 1, 4)
    assert config.seed == 3


def test_the_last_of_two_overrides_counts():
    assert load(None, ["seed=1", "seed=2"]).seed == 2


def test_overrides_hold_yaml():
    assert load(None, ["opt_stages=[[300,8],[600,4]]"]).stages[1].train_epoch == 600


def test_overrides_make_mappings_where_there_are_none():
    assert (
        load(None, ["search_space.dropout.low=0.1", "search_space.dropout.high=0.5"]).space["dropout"].high
        == 0.5
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("opt_epoch", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("cluster..ps=1", "empty part"),
        ("opt_stages=[[1,", "not YAML"),
        ("seed.x=1", "seed is not a mapping"),
        ("seed={a: 1, a: 2}", "given twice"),
        ("seed=&a [*a]", "refers to itself"),
    ],
)
def test_overrides_that_cannot_be_read(override, words):
    found = problems("seed: 1", [override])
    assert found[0].key == f"with {override}"
    assert words in found[0].message


def test_a_problem_of_an_override_names_the_override_instead_of_the_line():
    (problem,) = problems("opt_epoch: 3", ["opt_epoch=0"])
    assert (problem.key, problem.line) == ("with opt_epoch=0", None)


def test_a_mapping_of_python_values():
    config = load({"learning_rate": (0.1, 0.2), "batch_size": np.array([1, 8]), "seed": np.int64(3)})
    assert (config.space["batch_size"].high, config.seed) == (8, 3)


def test_a_mapping_is_not_changed():
    values = {"cluster": {"ps": 1}}
    load(values, ["cluster.ps=0"])
    assert values == {"cluster": {"ps": 1}}


@pytest.mark.parametrize("values", [{"seed": object()}, {3: 1}, {"cluster": {None: 1}}, {"seed": {1, 2}}])
def test_a_mapping_of_other_things(values):
    assert problems(values)


def test_a_mapping_that_holds_itself():
    values = {}
    values["search_space"] = values
    assert "deep" in problems(values)[0].message
