from __future__ import annotations

from agent.contacts import Contacts


def test_nothing_known_is_no_silence() -> None:
    assert Contacts().silent_for("a", 100.0) == 0.0


def test_silence_counts_from_the_newest_answer() -> None:
    contacts = Contacts()
    for at in (10.0, 12.0, 11.0):  # requests overtake each other
        contacts.answered("a", at)
    assert contacts.silent_for("a", 15.0) == 3.0


def test_each_study_has_its_own_coordinator() -> None:
    contacts = Contacts()
    contacts.answered("a", 10.0)
    contacts.answered("b", 14.0)
    assert (contacts.silent_for("a", 15.0), contacts.silent_for("b", 15.0)) == (5.0, 1.0)


def test_studies_without_attempts_are_forgotten() -> None:
    contacts = Contacts()
    contacts.answered("a", 10.0)
    contacts.answered("b", 10.0)
    contacts.forget(frozenset({"b"}))
    assert (contacts.silent_for("a", 15.0), contacts.silent_for("b", 15.0)) == (0.0, 5.0)
