"""The shipped models: their names, their data, their dimensions."""

from __future__ import annotations

import pytest

from coordinator.config import load
from coordinator.errors import ConfigError


def message(source):
    with pytest.raises(ConfigError) as caught:
        load(source)
    (problem,) = caught.value.problems
    return f"{problem.key}: {problem.message}"


@pytest.mark.parametrize(
    ("written", "name"),
    [("regressor", "Regressor"), ("CLASSIFIER", "Classifier"), ("cnn", "CNN"), ("my.mod:Net", "my.mod:Net")],
)
def test_names_of_models(written, name):
    assert load({"nn_model": written}).keys.nn_model == name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Regresor", "Regressor"),
        ("RegressorNN", "Regressor"),
        ("classifer", "Classifier"),
        ("ImageCNN", "CNN"),
        ("SourceCodeRNN", "RNN"),
        ("RNNs", "RNN"),
    ],
)
def test_a_misspelt_model_names_the_nearest(written, meant):
    assert message({"nn_model": written}).endswith(f"; did you mean {meant}?")


def test_custom_says_how_to_write_one():
    assert "package.module:Class" in message({"nn_model": "Custom"})
    assert "nhop_models.CustomNN" in message({"nn_model": "custom"})


def test_classes_are_the_outputs_of_the_classifier():
    assert load({"nn_model": "Classifier"}).keys.nn_dimensions == (4, 3)
    assert load({"nn_model": "Classifier", "nn_dimensions": [6, 5]}).keys.data_features == 6
    assert "at least 2 outputs" in message({"nn_model": "Classifier", "nn_dimensions": [4, 1]})
    assert "1 output, not 2" in message({"nn_dimensions": [4, 2]})


def test_dimensions_of_images_are_those_of_the_data():
    config = load({"nn_model": "CNN", "nn_dimensions": [4, 1]})
    assert config.keys.nn_dimensions is None
    assert config.notes == ("nn_dimensions has no effect: the CNN takes its dimensions from the data",)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "table.csv").write_text("1,a\n2,b\n")
    (tmp_path / "images.npz").write_bytes(b"")
    for language in ("c", "python"):
        (tmp_path / "code" / language).mkdir(parents=True)
    (tmp_path / "half" / "c").mkdir(parents=True)
    (tmp_path / "half" / ".git").mkdir()
    (tmp_path / "half" / "link").symlink_to(tmp_path / "code")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "name"),
    [("Classifier", "table.csv"), ("Classifier", "images.npz"), ("CNN", "images.npz"), ("RNN", "code")],
)
def test_data_of_models(files, model, name):
    config = load({"nn_model": model, "load_data": True, "load_data_dir": str(files / name)})
    assert config.keys.load_data_dir == str(files / name)


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("Classifier", "code", "is a folder: name the CSV or NPZ file"),
        ("CNN", "table.csv", "must be a .npz file"),
        ("CNN", "code", "is a folder: name the NPZ file"),
        ("RNN", "table.csv", "is a file: name the folder to read, with one sub-folder"),
        ("RNN", "half", "has 1 sub-folder, and two are the fewest"),
        ("RNN", "none", "none: does not exist"),
    ],
)
def test_data_that_is_not_for_the_model(files, model, name, words):
    assert words in message({"nn_model": model, "load_data": True, "load_data_dir": str(files / name)})


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("Regressor", "s3://bucket/table.csv"),
        ("Classifier", "gs://bucket/table.NPZ"),
        ("CNN", "s3://bucket/images.npz"),
        ("RNN", "s3://bucket/code"),
        ("my.mod:Net", "s3://bucket/anything"),
    ],
)
def test_data_at_a_url_stays_as_it_is_written(monkeypatch, model, url):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert load({"nn_model": model, "load_data": True, "load_data_dir": url}).keys.load_data_dir == url


@pytest.mark.parametrize(
    ("model", "url", "words"),
    [
        ("Regressor", "s3://bucket/table.txt", "s3://bucket/table.txt: must be a .csv or .npz file"),
        ("CNN", "s3://bucket/table.csv", "must be a .npz file"),
        ("my.mod:Net", "nothing://bucket/x", "the protocol nothing:// is not known"),
    ],
)
def test_a_url_that_is_not_for_the_model(model, url, words):
    assert words in message({"nn_model": model, "load_data": True, "load_data_dir": url})


def test_the_rnn_has_no_synthetic_data():
    assert message({"nn_model": "RNN"}).startswith("nn_model: the RNN has no synthetic data: set load_data")
    assert message({"nn_model": "RNN", "load_data": False}).startswith("load_data: ")
    assert message({"nn_model": "RNN", "load_data": True}).startswith("load_data: needs load_data_dir: the")
