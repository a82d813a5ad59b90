from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from agent.domain import AttemptId, TaskRequirement
from agent.leases import LeaseBook, NotEnoughError, PortPool, is_port_free
from nhop_models.contract import TaskId

ATTEMPT = AttemptId("s", 1, 1)
OTHER = AttemptId("s", 2, 1)
LOW = 19000


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
