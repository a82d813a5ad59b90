from __future__ import annotations

from coordinator.wording import some


def test_few_things_are_all_named():
    assert some(["a", "b"]) == "a, b"


def test_of_many_the_rest_is_counted():
    assert some(map(str, range(1005))) == "0, 1, 2, 3, 4 and 1,000 more"


def test_a_single_one_is_named_rather_than_counted():
    assert some("abcdef") == "a, b, c, d, e, f"
