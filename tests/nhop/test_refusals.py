"""A status must be small enough for every client."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from nhop._refusals import MOST_MESSAGE, MOST_VIOLATIONS, bad_request, cut


@pytest.mark.parametrize("text", ["", "short", "x" * MOST_MESSAGE, "a %", "ü" * 166])
def test_what_fits_stays(text: str) -> None:
    assert cut(text) == text


@pytest.mark.parametrize("character", ["x", "%", "\0", "\n", "ü", "\u202e", "\U0001f600"])
def test_what_is_long_is_cut_to_what_is_sent(character: str) -> None:
    text = cut(character * 100_000)
    sent = len(quote(text, safe="".join(map(chr, range(32, 127))).replace("%", "")))
    assert MOST_MESSAGE - 12 <= sent <= MOST_MESSAGE
    assert text.endswith("...")


def test_surrogates_can_be_sent() -> None:
    assert cut("a\udcff") == "a?"


def test_all_violations_are_told_where_there_is_room() -> None:
    problems = [(f"field{n}", "must be at least 1") for n in range(20)]
    assert [(v.field, v.description) for v in bad_request(problems).field_violations] == problems


def test_of_too_many_violations_the_number_is_told() -> None:
    bad = bad_request([("field", "x" * 100)] * 500)
    assert bad.ByteSize() < MOST_VIOLATIONS * 1.5
    told = len(bad.field_violations) - 1
    assert bad.field_violations[-1].description == f"and {500 - told} more problems"


def test_a_long_violation_is_cut() -> None:
    bad = bad_request([("x" * 10_000, "y" * 10_000), ("field", "must be set")])
    assert bad.field_violations[0].field.endswith("...")
    assert (bad.field_violations[1].field, bad.field_violations[1].description) == ("field", "must be set")
