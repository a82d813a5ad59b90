from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from dataclasses import replace

import fsspec
import pytest

from coordinator.bundles import pack
from coordinator.config import load
from coordinator.domain import Notice, Stage, Study, StudyState, Trial, TrialCounts, TrialState
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


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


async def test_results_for_a_url_are_here_and_there(memory, tmp_path, run_study):
    seen = []
    result = await start(load(), "memory://out", seen.append)
    assert (result.directory, result.url) == (tmp_path / "runs" / "s", "memory://out")
    here = sorted(file.name for file in result.directory.iterdir())
    assert sorted(path.removeprefix("/out/") for path in memory.find("/out")) == here
    assert seen[-1] == Notice("copying the results to memory://out")


async def test_the_folder_of_runs_may_be_a_url(memory, run_study):
    result = await start(load({"train_log_dir": "memory://runs"}))
    assert result.url == "memory://runs/s"
    assert memory.exists("/runs/s/summary.json")


async def test_a_url_that_holds_a_study_is_refused_before_anything_is_made(memory, tmp_path, run_study):
    memory.pipe("/out/summary.json", b"{}")
    with pytest.raises(UsageError, match="already holds a study"):
        await start(load(), "memory://out")
    assert run_study.calls == []
    assert list(tmp_path.iterdir()) == []


async def test_a_study_that_cannot_begin_leaves_nothing_at_its_url(memory, monkeypatch):
    async def refuse(*arguments, **keywords):
        assert memory.exists("/out/config.yaml")
        raise HostsError("no hosts")

    monkeypatch.setattr("coordinator.launch.run_study", refuse)
    with pytest.raises(HostsError):
        await start(load(), "memory://out")
    assert memory.find("/out") == []


async def test_a_copy_that_fails_is_in_the_result(memory, run_study, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError("no")

    monkeypatch.setattr(type(memory), "put_file", refuse)
    result = await start(load(), "memory://out")
    assert result.url is None
    assert "could not be copied to memory://out" in result.copy_problem
    assert (result.directory / "summary.json").exists()


async def test_a_study_stopped_while_its_url_is_looked_at_is_not_copied(memory, run_study, monkeypatch):
    stop, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(*arguments, **keywords):
        loop.call_soon_threadsafe(stop.set)
        release.wait(30)

    monkeypatch.setattr(type(memory), "info", hang)
    try:
        result = await launch(
            load(), study_id="s", output="memory://out", agents=None, observer=lambda update: None, stop=stop
        )
    finally:
        release.set()
    assert (result.url, result.copy_problem) == (None, "")


@pytest.fixture
def own(tmp_path):
    """A configuration of a model whose code has to be sent."""
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "away.py").symlink_to("/etc/passwd")
    study = tmp_path / "study.yaml"
    study.write_text("nn_model: mine:Net\n")
    return load(study, remote=True)


async def test_code_is_packed_before_the_study_and_given_up_after_it(tmp_path, run_study, own):
    await start(own, tmp_path / "out")
    (call,) = run_study.calls
    assert call["spec"].training.code == call["bundles"].code.digest
    assert call["bundles"].code.file.closed


async def test_what_is_not_sent_is_said_once(tmp_path, run_study, own):
    seen = []
    await start(own, tmp_path / "out", seen.append)
    (notice,) = [update for update in seen if isinstance(update, Notice)]
    assert "not sent: away.py" in notice.message


async def test_packing_that_takes_a_while_is_said(tmp_path, run_study, own, monkeypatch):
    heard = asyncio.Event()

    async def slowly(sources, *more):
        async with asyncio.timeout(10):
            await heard.wait()
        return await pack(sources, *more)

    def observe(update):
        if isinstance(update, Notice) and "packing" in update.message:
            heard.set()

    monkeypatch.setattr("coordinator.launch.pack", slowly)
    monkeypatch.setattr("coordinator.launch.QUIET", 0.0)
    await start(own, tmp_path / "out", observe)
    assert len(run_study.calls) == 1


async def test_code_that_cannot_be_packed_ends_it_before_anything_is_made(tmp_path, run_study, own):
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UsageError, match=r"^code: .*large\.bin 5\.0 GiB"):
        await start(own, tmp_path / "out")
    assert run_study.calls == []
    assert not (tmp_path / "out").exists()
