"""Synthetic data and tables."""

from __future__ import annotations

import numpy as np
import pytest

from nhop_models import DataError
from nhop_models.datasets import load_table, split_and_standardise, synthetic


def test_the_papers_cosine():
    x, y = synthetic(1000, 4, seed=1)
    assert (x.shape, y.shape) == ((1000, 4), (1000, 1))
    assert x.std() == pytest.approx(2.0, rel=0.1)
    assert y.min() >= np.cos(1 / 0.75) - 1e-12
    assert y.max() <= 1.0


def test_powers_of_one_variable():
    x, y = synthetic(1000, 3, seed=1, power_method=True)
    np.testing.assert_allclose(x[:, 2], x[:, 0] ** 3)
    coefficients, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(x @ coefficients, y, atol=1e-9)
    _, through_cosine = synthetic(1000, 3, seed=1, power_method=True, add_cosine=True)
    assert np.abs(through_cosine).max() <= 1.0


def test_noise_has_deviation_two():
    _, clean = synthetic(5000, 3, seed=1)
    _, noisy = synthetic(5000, 3, seed=1, add_noise=True)
    assert (noisy - clean).std() == pytest.approx(2.0, rel=0.05)


def test_the_seed_decides_the_data_and_the_split():
    a, b = (synthetic(50, 2, seed=seed) for seed in (3, 3))
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(a[0], synthetic(50, 2, seed=4)[0])


def test_the_split_is_80_20_disjoint_and_standardised():
    x = np.arange(1000.0).reshape(-1, 1) * [1.0, 5.0] + [0.0, 7.0]
    y = np.arange(1000.0).reshape(-1, 1)
    (x_train, y_train), (x_test, y_test) = split_and_standardise(x, y, seed=1)
    assert (len(x_train), len(x_test)) == (800, 200)
    assert sorted(np.concatenate([y_train, y_test]).ravel()) == list(range(1000))
    np.testing.assert_allclose(x_train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x_train.std(axis=0), 1, atol=1e-5)
    assert x_train.dtype == y_test.dtype == np.float32


def test_a_constant_feature_stays_finite():
    (x, _), _ = split_and_standardise(np.ones((10, 2)), np.ones((10, 1)), seed=0)
    assert np.isfinite(x).all()


@pytest.mark.parametrize(
    "text", ["1,2,3\n4,5,6\n", "a,b,target\n1,2,3\n4,5,6\n", '\ufeff"1",2,3\r\n4, 5 ,6\r\n\r\n']
)
def test_tables_of_many_forms(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    x, y = load_table(str(path))
    np.testing.assert_array_equal(x, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(y, [[3], [6]])


def test_an_npz(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.eye(3), y=np.arange(3))
    x, y = load_table(str(tmp_path / "t.npz"))
    assert (x.shape, y.shape) == ((3, 3), (3, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a,b,c\n", "no row of data"),
        ("1,2,3\n", "1 row of"),
        ("1\n2\n", "one column"),
        ("1,2,3\n4,5\n", "t.csv:2: 2 columns"),
        ("a,b\n1,2\n3,x\n", "t.csv:3: column 2 is not a number: 'x'"),
        ("1,2\n3,\n", "t.csv:2: column 2 is not a number: ''"),
        ("1,2\nnan,3\n", "data row 2, column 1 of the features"),
        ("1,2\n3,inf\n", "data row 2, column 1 of the target"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_table(str(path))
    assert words in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_other_bad_files(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "names.npz", a=np.eye(2))
    np.savez(tmp_path / "shapes.npz", X=np.eye(3), y=np.arange(2))
    np.savez(tmp_path / "objects.npz", X=np.array([object()]), y=np.arange(1))
    (tmp_path / "bytes.csv").write_bytes(b"1,2\n\xff\xfe,3\n")
    for name in ("text.npz", "names.npz", "shapes.npz", "objects.npz", "bytes.csv", "missing.csv", "."):
        with pytest.raises(DataError, match=name if name != "." else "not a file"):
            load_table(str(tmp_path / name))
