from __future__ import annotations

import asyncio

import pytest

from coordinator.room import Room


@pytest.fixture
async def enter():
    """Begins to take room; the task is done once it is taken."""
    tasks = []

    async def enter(room, number):
        tasks.append(asyncio.create_task(room.take(number)))
        for _ in range(3):
            await asyncio.sleep(0)
        return tasks[-1]

    yield enter
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_does_not_fit_waits_until_there_is_room(enter):
    room = Room(10)
    assert (await enter(room, 6)).done()
    second = await enter(room, 5)
    assert not second.done()
    room.give(6)
    await asyncio.wait_for(second, 10)


async def test_what_is_larger_than_the_room_gets_in_alone(enter):
    room = Room(10)
    await enter(room, 1)
    large = await enter(room, 20)
    assert not large.done()
    room.give(1)
    await asyncio.wait_for(large, 10)


async def test_nobody_overtakes(enter):
    room = Room(10)
    await enter(room, 8)
    large = await enter(room, 9)
    small = await enter(room, 1)
    assert not small.done()
    room.give(8)
    await asyncio.wait_for(asyncio.gather(large, small), 10)


async def test_who_gives_up_waiting_lets_the_next_one_in(enter):
    room = Room(10)
    await enter(room, 8)
    large = await enter(room, 9)
    small = await enter(room, 2)
    large.cancel()
    await asyncio.wait_for(small, 10)


async def test_who_is_cancelled_when_its_turn_comes_takes_no_room(enter):
    room = Room(10)
    await enter(room, 10)
    called = await enter(room, 10)
    room.give(10)
    called.cancel()
    await asyncio.gather(called, return_exceptions=True)
    assert (await enter(room, 10)).done()
