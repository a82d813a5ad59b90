from __future__ import annotations

from fractions import Fraction

import pytest

from agent import share
from agent.domain import TaskLease
from nhop_models.contract import TaskId

PS, WORKER = TaskId.parse("ps/0"), TaskId.parse("worker/0")


def leases(*slots: int) -> list[TaskLease]:
    return [TaskLease(WORKER if number else PS, number, None) for number in slots]


@pytest.mark.parametrize(
    ("slots_of_tasks", "cores", "slots", "expected"),
    [
        ((0, 1, 1), 8, 8, 1),
        ((0, 1, 1), 8, 2, 4),
        ((1,), 8, 1, 8),
        ((0, 1, 1, 1, 1), 2, 4, 1),  # more slots than cores
        ((1,), 8, 3, 2),
        ((2, 4), 8, 8, 2),
        ((0, 0), 8, 2, 4),  # parameter servers alone: as a worker would have
        ((20,), 2, 10, 4),
    ],
)
def test_threads_are_the_slots_part_of_the_cores(
    slots_of_tasks: tuple[int, ...], cores: int, slots: int, expected: int
) -> None:
    assert share.threads(leases(*slots_of_tasks), cores, slots) == expected


def test_a_task_without_gpus_sees_none() -> None:
    assert share.environment(TaskLease(PS, 0, 1)) == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_task_sees_its_gpus_by_uuid() -> None:
    lease = TaskLease(WORKER, 1, None, ("GPU-a", "GPU-b"))
    assert share.environment(lease) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


def test_a_task_is_told_its_share() -> None:
    lease = TaskLease(WORKER, 1, None, ("GPU-a",), Fraction(1, 4))
    assert share.environment(lease) == {"CUDA_VISIBLE_DEVICES": "GPU-a", "NHOP_GPU_SHARE": "0.25"}
