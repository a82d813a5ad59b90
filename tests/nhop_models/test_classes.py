"""Labels, the split that keeps every class, and tables with a class column."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhop_models import ClassifierNN, DataError, HyperParameters
from nhop_models.classes import describe, encode, load_labelled_table, split


def table(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return load_labelled_table(str(path))


def test_texts_are_classes_in_their_order(tmp_path):
    x, labels, where = table(tmp_path, "width,kind\n1,b\n2, a\n3,b\n4,a\n")
    y, names = encode(labels, where)
    assert names == ("a", "b")
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, [1, 0, 1, 0])
    np.testing.assert_array_equal(x, [[1], [2], [3], [4]])


def test_whole_numbers_are_ordered_by_value(tmp_path):
    _, labels, where = table(tmp_path, "0.5,10\n1,9\n2,9.0\n3,10\n")
    y, names = encode(labels, where)
    assert names == ("9", "10")
    np.testing.assert_array_equal(y, [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,a\n2,a\n", "t.csv:1: every row is of the same class, 'a'"),
        ("1,a\n2,a\n\n3,b\n", "t.csv:4: the only row of class 'b'"),
        ("1,0.5\n2,1.5\n", "t.csv:1: column 2: 0.5 is no class"),
        ("size,price\n1,0.5\n2,1.5\n", "is the last column ('price') the class?"),
        ("1,a\n2,\n", "t.csv:2: column 2, the class, is empty"),
        ("1,x,a\n", "t.csv:1: column 2 is not a number: 'x'"),
        ("1,,a\n2,3,a\n", "t.csv:1: column 2 is not a number: ''"),
        ("1,a\n2,3,a\n", "t.csv:2: 3 columns where the first line has 2"),
        ("x,nan,a\n1,nan,a\n2,1,b\n", "t.csv:1: column 1 is not a number"),
        ("1,a\nnan,b\n", "t.csv:2: column 1 of the features is not a finite number"),
        ("a\nb\n", "one column"),
        ("", "empty"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        _, labels, where = table(tmp_path, text)
        encode(labels, where)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (np.array(["u", "v", "u", "v"]), ("u", "v")),
        (np.array([1.0, 2.0, 1.0, 2.0]), ("1", "2")),
        (np.array([[5], [5], [3], [3]]), ("3", "5")),
        (np.array([True, False, True, False]), ("0", "1")),
    ],
)
def test_labels_of_an_npz(tmp_path, y, names):
    np.savez(tmp_path / "t.npz", X=np.eye(4), y=y)
    _, labels, where = load_labelled_table(str(tmp_path / "t.npz"))
    assert encode(labels, where)[1] == names


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.eye(2), np.array([0.5, 1.0]), "row 1 of y: 0.5 is no class"),
        (np.eye(2), np.arange(3), "not (2, 2) and (3,)"),
        (np.zeros((2, 2, 2)), np.arange(2), "(rows, features)"),
        (np.array([["a"], ["b"]]), np.arange(2), "must be numbers"),
        (np.array([[1.0], [np.inf]]), np.arange(2), "row 2 of y: column 1 of the features"),
    ],
)
def test_an_npz_that_does_not_fit(tmp_path, x, y, words):
    np.savez(tmp_path / "t.npz", X=x, y=y)
    with pytest.raises(DataError) as caught:
        load_labelled_table(str(tmp_path / "t.npz"))
    assert words in str(caught.value)


@given(st.lists(st.integers(2, 40), min_size=2, max_size=6), st.integers(0, 9))
def test_every_class_is_on_both_sides(counts, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    train, test = split(y, seed=seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    for number, count in enumerate(counts):
        assert (y[test] == number).sum() == max(1, round(count / 5))
        assert (y[train] == number).any()


def test_the_mapping_in_words():
    assert describe(["a", "b"], np.array([0, 0, 1])) == "0 = a (2), 1 = b (1)"
    assert describe([str(n) for n in range(25)], np.arange(25)).endswith("19 = 19 (1) and 5 more")


def hyper_parameters(**settings):
    return HyperParameters({"data_instances": 300, "data_features": 3, "seed": 1, **settings}, {})


def test_synthetic_classes_are_equal_parts_of_the_papers_function():
    model = ClassifierNN()
    (x, y), (x_test, y_test) = model.load_data(hyper_parameters(nn_dimensions=[3, 5]))
    assert model.classes == ("0", "1", "2", "3", "4")
    assert model.input_shape == (3,)
    assert set(np.bincount(np.concatenate([y, y_test]))) == {60}
    assert (len(x), len(x_test)) == (240, 60)
    assert abs(x.mean()) < 1e-6


def test_dimensions_that_the_table_does_not_have(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("1,a\n2,a\n3,b\n4,b\n")
    given = {"load_data": True, "load_data_dir": str(path)}
    for dimensions, words in (([1, 3], "3 outputs, the data has 2 classes"), ([2, 2], "1 features")):
        with pytest.raises(DataError, match=words):
            ClassifierNN().load_data(hyper_parameters(**given, nn_dimensions=dimensions))
    with pytest.raises(DataError, match="load_data_dir does not say"):
        ClassifierNN().load_data(hyper_parameters(load_data=True, load_data_dir=None))
