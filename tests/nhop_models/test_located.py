"""Where a model finds data that was sent to its host."""

from __future__ import annotations

import pytest

from nhop_models.runtime.worker import _located
from tests.nhop_models.driver import make_spec


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("t.csv", "/bundle/t.csv"),
        (".", "/bundle"),
        ("a/../b", "/bundle/b"),
        ("/data/t.csv", "/data/t.csv"),
        ("s3://bucket/t.csv", "s3://bucket/t.csv"),
        (None, None),
    ],
)
def test_relative_paths_are_within_the_data(location, found):
    spec = make_spec(settings={"load_data_dir": location, "seed": 1}, data_directory="/bundle")
    assert _located(spec) == {"load_data_dir": found, "seed": 1, "data_dir": "/bundle"}


def test_without_data_nothing_changes():
    spec = make_spec(settings={"load_data_dir": "t.csv"})
    assert _located(spec) == {"load_data_dir": "t.csv"}
