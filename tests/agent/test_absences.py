from __future__ import annotations

from agent.absences import Absences


def test_a_study_is_abandoned_at_the_limit() -> None:
    absences = Absences(10.0)
    seen = [absences.abandoned({"a"}, now) for now in (0.0, 9.9, 10.0)]
    assert seen == [set(), set(), {"a"}]


def test_it_stays_abandoned_until_someone_comes() -> None:
    absences = Absences(10.0)
    absences.abandoned({"a"}, 0.0)
    absences.abandoned({"a"}, 10.0)
    assert absences.abandoned({"a"}, 11.0) == {"a"}
    absences.end("a")
    assert absences.abandoned({"a"}, 12.0) == set()


def test_short_absences_do_not_add_up() -> None:
    absences = Absences(10.0)
    absences.abandoned({"a"}, 0.0)
    absences.end("a")  # and gone again before the next look
    absences.abandoned({"a"}, 9.0)
    assert absences.abandoned({"a"}, 18.0) == set()


def test_the_time_with_a_subscriber_does_not_count() -> None:
    absences = Absences(10.0)
    absences.abandoned({"a"}, 0.0)
    absences.abandoned(set(), 5.0)
    assert absences.abandoned({"a"}, 12.0) == set()


def test_each_study_has_its_own_time() -> None:
    absences = Absences(10.0)
    absences.abandoned({"a"}, 0.0)
    assert absences.abandoned({"a", "b"}, 10.0) == {"a"}
