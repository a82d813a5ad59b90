from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import replace

import pytest

from coordinator.config import load
from coordinator.domain import Stage, Study, StudyState, Trial, TrialCounts, TrialState
from coordinator.errors import HostsError, StudyFailedError, UsageError
from coordinator.launch import launch
from coordinator.naming import new_study_id
from coordinator.runtime import StudyResult
from coordinator.search.random_search import propose


@pytest.fixture
def run_study(monkeypatch):
    """A study of one trial that completes at once; what it was called with is in ``calls``."""
    calls = []

    async def scripted(spec, *, directory, observer, **keywords):
        calls.append(keywords | {"spec": spec, "before": sorted(directory.path.iterdir())})
        best = Trial(1, 1, TrialState.COMPLETED, propose(spec.seed, 1, spec.space), 0.5, 0.5, 0.5)
        stage = Stage(1, spec.stages[0], spec.space)
        study = Study(spec.study_id, StudyState.RUNNING, (stage,), 1, TrialCounts(total=1))
        observer(study)
        calls[-1]["during"] = sorted(file.name for file in directory.path.iterdir())
        ended = replace(study, state=StudyState.COMPLETED, counts=TrialCounts(1, completed=1), best=best)
        return StudyResult(ended, (best,), directory.path)

    monkeypatch.setattr("coordinator.launch.run_study", scripted)
    scripted.calls = calls
    return scripted


async def start(config, output=None, observer=lambda update: None, agents=None):
    return await launch(
        config, study_id="s", output=output, agents=agents, observer=observer, stop=asyncio.Event()
    )


async def test_the_results_are_written(tmp_path, run_study):
    config = load({"seed": 1})
    seen = []
    result = await start(config, tmp_path / "out", seen.append)
    assert result.directory == tmp_path / "out"
    assert (result.directory / "config.yaml").read_text() == config.to_yaml()
    assert json.loads((result.directory / "summary.json").read_text())["study_id"] == "s"
    assert load(result.directory / "best_config.yaml").stages[0].opt_epoch == 1
    assert len(seen) == 1


async def test_the_configuration_is_there_once_the_study_has_begun_and_not_before(tmp_path, run_study):
    await start(load(), tmp_path / "out")
    assert run_study.calls[0]["before"] == []
    assert run_study.calls[0]["during"] == ["config.yaml"]


async def test_the_default_folder_is_named_after_the_study(tmp_path, run_study, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (await start(load())).directory == tmp_path / "runs" / "s"
    assert (await start(load({"train_log_dir": "logs"}))).directory == tmp_path / "logs" / "s"


async def test_slots_are_those_of_the_private_agent(tmp_path, run_study):
    await start(load({"slots": 5}), tmp_path / "out")
    assert run_study.calls[0]["slots"] == 5


async def test_more_workers_than_slots_are_refused_before_anything_is_made(tmp_path, run_study):
    with pytest.raises(HostsError):
        await start(load({"slots": 1}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_holds_a_study_is_refused(tmp_path, run_study):
    (tmp_path / "study.db").write_text("")
    with pytest.raises(UsageError):
        await start(load(), tmp_path)
    assert run_study.calls == []


def test_study_ids_are_what_the_protocol_allows():
    import re

    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", new_study_id())


async def test_results_that_cannot_be_written_fail_the_study(tmp_path, run_study, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coordinator.launch.write_results", full)
    with pytest.raises(StudyFailedError, match=r"results cannot be written \(No space left on device\)$"):
        await start(load(), tmp_path / "out")


async def test_a_configuration_that_cannot_be_written_fails_the_study(tmp_path, run_study, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coordinator.launch.write_atomically", full)
    with pytest.raises(StudyFailedError, match="results cannot be written"):
        await start(load(), tmp_path / "out")
