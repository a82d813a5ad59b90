from __future__ import annotations

from fractions import Fraction

import pytest

from agent.domain import AttemptId, TaskLease
from agent.gpu_pool import GpuPool, NoGpuFreeError, amount_of
from agent.gpus import GpuDevice
from nhop_models.contract import TaskId

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)


def attempt(number: int = 1) -> AttemptId:
    return AttemptId("s", number, 1)


def pool(count: int = 2) -> GpuPool:
    return GpuPool(GpuDevice(uuid, "fake", 1) for uuid in "abcd"[:count])


def take(gpus: GpuPool, number: int, *amounts: Fraction | int) -> list[str]:
    """UUIDs for each task, one after the other."""
    return ["".join(uuids) for uuids, _ in gpus.take(attempt(number), [Fraction(a) for a in amounts])]


def give_back(gpus: GpuPool, number: int) -> None:
    gpus.give_back(attempt(number), gpus.held(attempt(number)))


def free(gpus: GpuPool) -> list[Fraction]:
    return [gpu.free for gpu in gpus]


def test_whole_gpus_in_the_order_of_the_inventory() -> None:
    assert take(pool(4), 1, 1, 2, 0) == ["c", "ab", ""]


def test_whole_gpus_go_round() -> None:
    gpus = pool(3)
    order = []
    for number in range(1, 5):
        order += take(gpus, number, 1)
        give_back(gpus, number)
    assert order == ["a", "b", "c", "a"]


def test_shares_fill_a_gpu_before_the_next() -> None:
    assert take(pool(), 1, THIRD, THIRD, THIRD, THIRD) == ["a", "a", "a", "b"]


def test_a_share_goes_where_least_is_left_that_is_enough() -> None:
    gpus = pool(3)
    assert take(gpus, 1, Fraction(3, 4), HALF) == ["a", "b"]
    assert take(gpus, 2, Fraction(1, 4), HALF, HALF) == ["a", "b", "c"]


def test_three_thirds_are_one() -> None:
    gpus = pool(1)
    take(gpus, 1, *[amount_of(1 / 3)] * 3)
    assert free(gpus) == [0]


def test_a_shared_gpu_is_not_a_whole_one() -> None:
    gpus = pool(1)
    take(gpus, 1, HALF)
    with pytest.raises(NoGpuFreeError, match=r"^1 GPUs wanted, 0\.5 free$"):
        take(gpus, 2, 1)


def test_an_attempt_takes_all_or_nothing() -> None:
    gpus = pool()
    with pytest.raises(NoGpuFreeError, match="3 GPUs wanted, 2 free"):
        take(gpus, 1, 1, 1, 1)
    assert free(gpus) == [1, 1]


def test_what_is_given_back_is_free() -> None:
    gpus = pool()
    take(gpus, 1, HALF, HALF, 1)
    give_back(gpus, 1)
    assert free(gpus) == [1, 1]


def test_a_quarantined_gpu_is_not_leased_and_named() -> None:
    gpus = pool()
    gpus["a"].quarantined = "a process is stuck"
    assert take(gpus, 1, HALF) == ["b"]
    with pytest.raises(NoGpuFreeError, match=r"0\.5 free; a is quarantined: a process is stuck$"):
        take(gpus, 2, 1)


def test_what_an_earlier_agent_leased_stays_leased() -> None:
    gpus = pool()
    gone = TaskLease(TaskId.parse("worker/1"), 1, None, ("gone",))
    gpus.restore(attempt(), [TaskLease(TaskId.parse("worker/0"), 1, None, ("b",), HALF), gone])
    assert free(gpus) == [1, HALF]
    assert gpus.held(attempt()) == ("b",)


@pytest.mark.parametrize(
    ("value", "exact"), [(0.0, 0), (2.0, 2), (0.5, HALF), (1 / 3, THIRD), (0.33, Fraction(33, 100))]
)
def test_amounts_are_exact(value: float, exact: Fraction) -> None:
    assert amount_of(value) == exact
