"""GPUs of a made-up inventory, down to the environment of tasks that were forked from the real zygote."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from nhop.v1 import agent_pb2
from tests.contract import harness
from tests.contract.harness import Harness, RealAgent, attempt_id, ended, is_kind, pids, start_request
from tests.fakes.gpus import write_gpus

MODEL = """
import json, os
import keras, numpy as np
from nhop_models import NNModel
seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NHOP_GPU_SHARE")}
print("SEEN", json.dumps(seen), flush=True)

class Telling(NNModel):
    def load_data(self, hp):
        x = np.zeros((8, 1), "float32")
        return (x, x), (x, x)

    def build_model(self, hp):
        return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
"""
FOREVER = {"worker/0": {"runs_for": None}}


# --- what a task sees ------------------------------------------------------------------------


@pytest.fixture
async def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealAgent]:
    """An agent with two GPUs that are not there, and real tasks."""
    monkeypatch.setattr(harness, "DEADLINE", 60.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # the agent's own: not for tasks
    (tmp_path / "telling.py").write_text(MODEL)
    agent = await RealAgent.launch(tmp_path, zygote="telling_zygote.py")
    yield agent
    await agent.close()


async def run_telling(agent: RealAgent, *tasks: str, gpus: float) -> dict[str, Any]:
    """What each task saw in its environment."""
    prepared = await agent.prepare(attempt_id(), *tasks, gpus=gpus)
    request = start_request(attempt_id(), prepared.leases)
    request.limits.start.seconds = 60
    request.training.model = "telling:Telling"
    request.training.python_path.append(str(agent.state_dir.parent))
    request.training.train_epoch = 1
    request.training.parameters.values.update(
        {"learning_rate": 0.1, "batch_size": 4, "train_optimizer": "sgd"}
    )
    request.training.settings.values.update({"seed": 1})
    await agent.stub.StartAttempt(request, timeout=harness.DEADLINE)
    async with agent.follow() as stream:
        await stream.until(ended)
        return {task: await told(agent, task) for task in tasks}


async def told(agent: Harness, task: str) -> Any:
    request = agent_pb2.ReadLogRequest(attempt=attempt_id(), task=harness.task_id(task))
    log = b"".join([part.data async for part in agent.stub.ReadLog(request)]).decode()
    (line,) = [line for line in log.splitlines() if line.startswith("SEEN ")]
    return json.loads(line.removeprefix("SEEN "))


@pytest.mark.e2e
async def test_workers_see_their_gpus_and_parameter_servers_none(real: RealAgent) -> None:
    assert await run_telling(real, "ps/0", "worker/0", "worker/1", gpus=1) == {
        "ps/0": {"CUDA_VISIBLE_DEVICES": "", "NHOP_GPU_SHARE": None},
        "worker/0": {"CUDA_VISIBLE_DEVICES": "GPU-a", "NHOP_GPU_SHARE": None},
        "worker/1": {"CUDA_VISIBLE_DEVICES": "GPU-b", "NHOP_GPU_SHARE": None},
    }


@pytest.mark.e2e
async def test_workers_that_share_a_gpu_are_told_their_shares(real: RealAgent) -> None:
    assert await run_telling(real, "ps/0", "worker/0", "worker/1", gpus=0.5) == {
        "ps/0": {"CUDA_VISIBLE_DEVICES": "", "NHOP_GPU_SHARE": None},
        "worker/0": {"CUDA_VISIBLE_DEVICES": "GPU-a", "NHOP_GPU_SHARE": "0.5"},
        "worker/1": {"CUDA_VISIBLE_DEVICES": "GPU-a", "NHOP_GPU_SHARE": "0.5"},
    }


@pytest.mark.e2e
async def test_a_task_without_gpus_sees_none(real: RealAgent) -> None:
    assert await run_telling(real, "worker/0", gpus=0) == {
        "worker/0": {"CUDA_VISIBLE_DEVICES": "", "NHOP_GPU_SHARE": None}
    }


# --- how GPUs come back ----------------------------------------------------------------------


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[RealAgent]:
    """An agent with two GPUs, which it quarantines soon."""
    agent = await RealAgent.launch(tmp_path, gpu_release_limit=0.1)
    yield agent
    await agent.close()


async def until(agent: Harness, condition: Callable[[Any], bool]) -> Any:
    """The inventory's first GPU, once it fulfils the condition."""
    async with asyncio.timeout(harness.DEADLINE):
        while not condition(gpu := (await agent.inventory()).gpus[0]):  # noqa: ASYNC110  (it tells no one)
            await asyncio.sleep(0.02)
    return gpu


async def end_on_gpu(agent: RealAgent) -> int:
    """Runs an attempt on a GPU from which the driver does not take its process; that one's pid."""
    prepared = await agent.prepare(attempt_id(), "worker/0", gpus=1)
    await agent.start(attempt_id(), prepared.leases, FOREVER)
    async with agent.follow() as stream:
        pid = pids(await stream.until(is_kind("task_ready")))["worker/0"]
        write_gpus(agent.gpus_file, *harness.GPUS, pids={"GPU-a": [pid]})
        await agent.stop(attempt_id())
        await stream.until(ended)
    return pid


async def test_a_gpu_that_is_not_given_back_is_quarantined_until_it_is(agent: RealAgent) -> None:
    pid = await end_on_gpu(agent)
    gpu = await until(agent, lambda gpu: gpu.quarantined)
    assert f"study-t1-a1 has ended, but the driver still lists process {pid}" in gpu.quarantined
    assert (await agent.inventory()).free_slots == 2
    assert [
        list(lease.gpus) for lease in (await agent.prepare(attempt_id(2), "worker/0", gpus=1)).leases
    ] == [["GPU-b"]]
    write_gpus(agent.gpus_file, *harness.GPUS)
    await until(agent, lambda gpu: not gpu.quarantined and gpu.free == 1)


async def test_a_quarantined_gpu_is_named_when_gpus_are_refused(agent: RealAgent) -> None:
    await end_on_gpu(agent)
    await until(agent, lambda gpu: gpu.quarantined)
    with pytest.raises(grpc.aio.AioRpcError, match="GPU-a is quarantined"):
        await agent.prepare(attempt_id(2), "worker/0", gpus=2)


async def test_a_restarted_agent_keeps_what_its_tasks_hold(agent: RealAgent, tmp_path: Path) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0", gpus=1)
    stubborn = {"worker/0": {"runs_for": None, "ignores": ["SIGUSR1"]}}
    await agent.start(attempt_id(), prepared.leases, stubborn, stop_grace=60.0)
    async with agent.follow() as stream:
        pid = pids(await stream.until(is_kind("task_ready")))["worker/0"]
    await agent.kill()
    again = await RealAgent.launch(tmp_path)
    try:
        assert (await again.inventory()).gpus[0].free == 0
        os.kill(pid, signal.SIGTERM)
        await until(again, lambda gpu: gpu.free == 1)
    finally:
        await again.close()


async def test_threads_of_tasks_are_the_agents_to_say(agent: RealAgent) -> None:
    prepared = await agent.prepare(attempt_id(), "worker/0")
    await agent.start(attempt_id(), prepared.leases, FOREVER)
    spec = json.loads((agent.state_dir / "attempts" / "study-t1-a1" / "spec.json").read_text())
    assert spec["threads"] == max(1, (await agent.inventory()).cpu_cores // 2)
