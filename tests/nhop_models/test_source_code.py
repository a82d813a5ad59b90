"""The samples of the RNN."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models import HyperParameters, SourceCodeRNN
from nhop_models.tokens import PADDING
from tests.nhop_models.languages import make_languages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_languages(tmp_path_factory.mktemp("code"), files=20)


def load(folder, **settings):
    given = {"load_data": True, "load_data_dir": str(folder), "seed": 1, "rnn_max_seq_length": 30}
    model = SourceCodeRNN()
    return model, model.load_data(HyperParameters({**given, **settings}, {}))


def test_shapes_classes_and_log(folder, capsys):
    model, ((x, y), (x_test, y_test)) = load(folder)
    assert model.classes == ("braces", "colons")
    assert model.input_shape == (30,)
    assert x.shape == (4 * 32, 30)
    assert (x_test.shape, x.dtype, y.dtype) == ((8, 30), np.int32, np.int32)
    assert list(np.bincount(y_test)) == [4, 4], "one sample of each held-out file"
    assert x.max() < len(model.vocabulary)
    said = capsys.readouterr().out
    assert "braces 16 + 4, colons 16 + 4" in said
    assert "keywords: " in said


def test_every_worker_gets_the_same_samples(folder):
    for (x, y), (other_x, other_y) in zip(load(folder)[1], load(folder)[1], strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)
    assert not np.array_equal(load(folder)[1][0][0], load(folder, seed=2)[1][0][0])


def test_short_files_are_padded_at_their_end(folder):
    _, ((x, _), _) = load(folder, rnn_max_seq_length=600)
    ends = (x != PADDING).sum(axis=1)
    assert x.shape == (32, 600)
    assert all((row[:end] != PADDING).all() for row, end in zip(x, ends, strict=True))
    assert ends.max() < 600


def test_samples_of_a_file_do_not_overlap(folder):
    _, ((x, _), _) = load(folder, windows_per_file=1000)
    assert len(x) > 4 * 32
    assert len(np.unique(x, axis=0)) > 0.99 * len(x)


def test_held_out_files_add_nothing_to_the_vocabulary(folder, tmp_path):
    """A word that is in the held-out files alone is no keyword, however often it is there."""
    from nhop_models.source_files import read_folder, split

    files, languages, _ = read_folder(str(folder))
    _, test = split(files, languages, seed=1)
    copy = make_languages(tmp_path / "code", files=20)
    for file in test:
        path = copy / file.path
        path.write_text(path.read_text() + "\nunseen\n" * 3)
    model, _ = load(copy)
    assert "return" in model.vocabulary.keywords
    assert "unseen" not in model.vocabulary.keywords


def test_new_text_is_coded_as_the_model_takes_it(folder):
    model, _ = load(folder)
    codes = model.encode("if (a_1) { b = 2; }  /* said */")
    assert codes.shape == (1, 30)
    assert (codes[0] != PADDING).sum() == 10
