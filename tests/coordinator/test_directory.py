from __future__ import annotations

import os

import pytest

from coordinator.directory import StudyDirectory
from coordinator.errors import UsageError


def test_missing_folders_are_made(tmp_path):
    with StudyDirectory.create(tmp_path / "runs" / "one") as directory:
        assert directory.path.is_dir()
        (directory.path / "config.yaml").write_text("")
    assert directory.path.is_dir()


def test_a_folder_that_stayed_empty_is_removed_with_its_parents(tmp_path):
    with StudyDirectory.create(tmp_path / "runs" / "one"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_of_the_user_stays(tmp_path):
    with StudyDirectory.create(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_folder_that_holds_a_study_is_refused(tmp_path):
    (tmp_path / "study.db").write_text("")
    with pytest.raises(UsageError, match="already holds a study"):
        StudyDirectory.create(tmp_path)


def test_two_at_once_are_refused(tmp_path):
    with StudyDirectory.create(tmp_path), pytest.raises(UsageError, match="another nhop-coordinator"):
        StudyDirectory.create(tmp_path)


def test_the_lock_ends_with_the_study(tmp_path):
    StudyDirectory.create(tmp_path).close()
    StudyDirectory.create(tmp_path).close()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --output"):
        StudyDirectory.create(tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="choose another --output"):
        StudyDirectory.create(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="not writable"):
        StudyDirectory.create(tmp_path)
    tmp_path.chmod(0o700)
