"""What tasks leave is removed, whatever they have made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.attempts import AttemptDirectory, Manifest
from agent.domain import AttemptId
from agent.task_places import remove_tree
from agent.task_user import TaskUser
from nhop_models.contract import TASKS_FOLDER
from tests.users import Users, needs_users, some_users

DEPTH = sys.getrecursionlimit() + 500


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path)], check=False)


def make_deep(folder: Path, owner: int = -1) -> None:
    """Folders within each other, with no path that could name the innermost."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d" * 8, dir_fd=place)
        inner = os.open("d" * 8, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
        os.fchown(place, owner, owner)
    os.close(place)


def test_folders_deeper_than_python_goes(folder: Path) -> None:
    directory = AttemptDirectory.create(folder, AttemptId("study", 1, 1), Manifest(()))
    make_deep(directory.path / TASKS_FOLDER)
    directory.delete()
    assert list(folder.iterdir()) == []


@needs_users
def test_folders_of_another_user_deeper_than_python_goes() -> None:
    with some_users() as users:
        made = users.folder / "made"
        made.mkdir()
        made.chmod(0o770)
        os.chown(made, -1, users.tasks)
        make_deep(made, users.tasks)
        remove_tree(made, user_of(users))
        assert not made.exists()


def user_of(users: Users) -> TaskUser:
    return TaskUser("tasks", users.tasks, users.tasks)
