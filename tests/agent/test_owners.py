"""To whom studies belong."""

from __future__ import annotations

import pytest

from agent import owners as owners_module
from agent.owners import KEPT_SECONDS, Owners
from nhop.security.identity import Identity, Role

ALICE, BOB = Identity(Role.COORDINATOR, "alice"), Identity(Role.COORDINATOR, "bob")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def owners(clock: Clock) -> Owners:
    return Owners(clock)


def test_who_uses_a_name_first_owns_it(owners: Owners) -> None:
    assert owners.refuse(ALICE, ["a"]) == ""
    assert owners.of("a") == ALICE.uri
    assert owners.refuse(ALICE, ["a"]) == ""
    assert owners.refuse(BOB, ["a"]) == "study 'a' is another coordinator's"


def test_a_refusal_claims_nothing(owners: Owners) -> None:
    owners.refuse(ALICE, ["a"])
    assert owners.refuse(BOB, ["b", "a", "c"]) != ""
    assert owners.of("b") == owners.of("c") == ""


def test_a_claim_of_an_earlier_agent(owners: Owners) -> None:
    owners.claim("a", ALICE.uri)
    assert owners.refuse(BOB, ["a"]) != ""
    owners.claim("a", BOB.uri)  # of another attempt, whose file was changed
    assert owners.of("a") == ALICE.uri


def test_what_was_nobodys_is_free(owners: Owners) -> None:
    owners.claim("a", "")
    assert owners.refuse(BOB, ["a"]) == ""


def test_a_claim_lasts_as_long_as_it_is_used(owners: Owners, clock: Clock) -> None:
    owners.refuse(ALICE, ["a", "b", "c"])
    clock.now += KEPT_SECONDS - 1
    owners.refuse(ALICE, ["b"])
    clock.now += 2
    owners.forget(frozenset({"c"}))  # of which there are attempts
    assert [owners.of(study) for study in "abc"] == ["", ALICE.uri, ALICE.uri]
    assert owners.refuse(BOB, ["a"]) == ""


@pytest.mark.parametrize("name", ["", "A", "../x", "x" * 65, "x\n"])
def test_what_can_be_no_study_is_nobodys(owners: Owners, name: str) -> None:
    assert owners.refuse(ALICE, [name]) == ""
    assert owners.of(name) == ""


def test_claims_are_limited(owners: Owners, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners_module, "MAX_CLAIMS", 3)
    assert owners.refuse(ALICE, ["a", "b", "a"]) == ""
    assert owners.refuse(ALICE, ["a", "c"]) == ""
    assert owners.refuse(ALICE, ["d"]) == "3 studies of this coordinator are known here already"
    assert owners.of("d") == ""
    assert owners.refuse(BOB, ["d"]) == ""
    clock.now += KEPT_SECONDS + 1
    owners.forget(frozenset())
    assert owners.refuse(ALICE, ["e", "f", "g"]) == ""
