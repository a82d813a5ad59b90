from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from fractions import Fraction

import pytest

from agent.domain import AttemptId, TaskLease, TaskRequirement
from agent.gpu_pool import GpuPool
from agent.gpus import GpuDevice
from agent.leases import LeaseBook, NotEnoughError, PortPool, is_port_free
from nhop_models.contract import TaskId

ATTEMPT = AttemptId("s", 1, 1)
OTHER = AttemptId("s", 2, 1)
LOW = 10_000 + os.getpid() % 180 * 50  # of this process alone, whatever else runs tests here


def pool(size: int = 50, seed: int = 0) -> PortPool:
    return PortPool(LOW, LOW + size - 1, random.Random(seed))


def needs(*tasks: str, port: bool = True) -> list[TaskRequirement]:
    return [TaskRequirement(TaskId.parse(t), int(t.startswith("worker")), port) for t in tasks]


@pytest.fixture
def book() -> Iterator[LeaseBook]:
    book = LeaseBook(2, pool())
    yield book
    book.release(ATTEMPT)
    book.release(OTHER)


def test_a_gang_takes_a_slot_for_each_worker(book: LeaseBook) -> None:
    book.lease(ATTEMPT, needs("ps/0", "worker/0"))
    assert book.free_slots == 1


def test_leases_are_idempotent(book: LeaseBook) -> None:
    assert book.lease(ATTEMPT, needs("worker/0")) == book.lease(ATTEMPT, needs("worker/0"))


def test_a_gang_that_does_not_fit_takes_nothing(book: LeaseBook) -> None:
    with pytest.raises(NotEnoughError, match="3 slots wanted, 2 free"):
        book.lease(ATTEMPT, needs("worker/0", "worker/1", "worker/2"))
    assert book.free_slots == 2


def test_released_slots_are_free_again(book: LeaseBook) -> None:
    book.lease(ATTEMPT, needs("worker/0"))
    book.release(ATTEMPT)
    assert book.free_slots == 2


def test_tasks_that_need_no_port_get_none(book: LeaseBook) -> None:
    assert [lease.port for lease in book.lease(ATTEMPT, needs("worker/0", port=False))] == [None]


def test_ports_of_two_attempts_differ(book: LeaseBook) -> None:
    first = book.lease(ATTEMPT, needs("ps/0", "worker/0"))
    second = book.lease(OTHER, needs("ps/0", "worker/0"))
    assert len({lease.port for lease in (*first, *second)}) == 4


def gpus_for(amount: Fraction, port: bool = True) -> list[TaskRequirement]:
    return [TaskRequirement(TaskId.parse("worker/0"), 1, port, amount)]


@pytest.fixture
def gpus() -> GpuPool:
    return GpuPool([GpuDevice("GPU-a", "fake", 1)])


def test_gpus_are_leased_with_the_rest(gpus: GpuPool) -> None:
    book = LeaseBook(2, pool(), gpus)
    assert book.lease(ATTEMPT, gpus_for(Fraction(1, 4), port=False)) == (
        TaskLease(TaskId.parse("worker/0"), 1, None, ("GPU-a",), Fraction(1, 4)),
    )
    book.release(ATTEMPT)
    assert gpus["GPU-a"].free == 1


def test_without_enough_gpus_nothing_is_taken(gpus: GpuPool) -> None:
    book = LeaseBook(2, pool(), gpus)
    with pytest.raises(NotEnoughError, match="2 GPUs wanted, 1 free") as error:
        book.lease(ATTEMPT, gpus_for(Fraction(2)))
    assert error.value.resource == "GPUS"
    assert book.free_slots == 2


def test_without_a_port_no_gpu_is_taken(gpus: GpuPool) -> None:
    ports = pool(1)
    taken = ports.take(1)
    book = LeaseBook(2, ports, gpus)
    with pytest.raises(NotEnoughError, match="ports"):
        book.lease(ATTEMPT, gpus_for(Fraction(1)))
    ports.release(taken)
    assert gpus["GPU-a"].free == 1


def test_gpus_may_come_back_later_than_the_rest(gpus: GpuPool) -> None:
    book = LeaseBook(2, pool(), gpus)
    book.lease(ATTEMPT, gpus_for(Fraction(1)))
    book.release(ATTEMPT, gpus=False)
    assert (book.free_slots, gpus["GPU-a"].free) == (2, 0)


def test_gpus_of_an_attempt_of_an_earlier_agent_are_restored(gpus: GpuPool) -> None:
    book = LeaseBook(2, pool(), gpus)
    book.restore(ATTEMPT, [TaskLease(TaskId.parse("worker/0"), 1, None, ("GPU-a",))])
    assert gpus["GPU-a"].free == 0


def test_a_lease_knows_what_it_was_given_for(gpus: GpuPool) -> None:
    book = LeaseBook(2, pool(), gpus)
    requirements = [*gpus_for(Fraction(1, 3)), *needs("ps/0")]
    assert [lease.requirement for lease in book.lease(ATTEMPT, requirements)] == requirements
    book.release(ATTEMPT)


def test_a_range_that_is_taken_is_named_with_the_remedy() -> None:
    ports = pool(2)
    taken = ports.take(1)
    message = rf"^2 ports wanted, 1 free of {LOW}-{LOW + 1}: .*--port-range"
    with pytest.raises(NotEnoughError, match=message) as error:
        ports.take(2)
    ports.release(taken)
    assert error.value.resource == "PORTS"


def test_a_port_is_not_used_again_at_once() -> None:
    ports = pool()
    first = ports.take(1)
    ports.release(first)
    second = ports.take(1)
    ports.release(second)
    assert first != second


def test_pools_begin_at_different_places() -> None:
    starts = set()
    for seed in range(5):
        ports = pool(seed=seed)
        taken = ports.take(1)
        ports.release(taken)
        starts.update(taken)
    assert len(starts) > 1


def test_two_agents_never_hold_the_same_port() -> None:
    first, second = pool(4), pool(4)
    held = first.take(2) + second.take(2)
    first.release(held)
    second.release(held)
    assert len(set(held)) == 4


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_someone_listens_on_is_not_leased(address: str) -> None:
    ports = pool(2)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, LOW))
        listener.listen()
        taken = ports.take(1)
        ports.release(taken)
    assert taken == [LOW + 1]


def test_too_few_ports_take_none() -> None:
    ports = pool(2)
    with pytest.raises(NotEnoughError, match="3 ports wanted, 2 free"):
        ports.take(3)
    taken = ports.take(2)
    ports.release(taken)
    assert len(taken) == 2


def test_a_free_port_is_free() -> None:
    assert is_port_free(LOW)
