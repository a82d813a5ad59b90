from __future__ import annotations

import pytest

from nhop.security.telling import TOLD_A_SECOND, Sparing, readable


def test_more_than_anybody_would_read_is_counted() -> None:
    said: list[str] = []
    now = 100.0
    tell = Sparing(said.append, "more calls were refused", lambda: now)
    for number in range(TOLD_A_SECOND + 7):
        tell(str(number))
    assert said == [str(number) for number in range(TOLD_A_SECOND)]
    now = 101.5
    tell("next")
    assert said[TOLD_A_SECOND:] == ["7 more calls were refused within a second", "next"]


def test_few_are_all_said() -> None:
    said: list[str] = []
    now = 100.0
    tell = Sparing(said.append, "more", lambda: now)
    for now in (100.0, 101.0, 102.0):
        tell(str(now))
    assert said == ["100.0", "101.0", "102.0"]


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ("ipv4:10.0.0.1:4242", "10.0.0.1:4242"),
        ("ipv6:%5B::1%5D:4242", "[::1]:4242"),
        ("unix:", "unix:"),
    ],
)
def test_peers(peer: str, text: str) -> None:
    assert readable(peer) == text
