"""A real zygote for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nhop_models.driver import Attempt, ZygoteDriver, make_spec


@pytest.fixture(scope="session")
def zygote() -> Iterator[ZygoteDriver]:
    driver = ZygoteDriver()
    yield driver
    driver.close()


@pytest.fixture
def make_attempt(zygote: ZygoteDriver, tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    attempts: list[Attempt] = []

    def make(**changes: Any) -> Attempt:
        directory = tmp_path / f"attempt-{len(attempts)}"
        directory.mkdir()
        attempts.append(Attempt(zygote, directory, make_spec(**changes)))
        return attempts[-1]

    yield make
    for attempt in attempts:
        attempt.stop()
