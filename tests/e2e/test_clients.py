"""Programs that use NHOP: the Python API, a served coordinator, generic gRPC tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.conftest import ROOT, summary

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

STUDY = {
    "opt_stages": [[200, 2]],
    "cluster": {"ps": 1, "workers": 2},
    "data_instances": 500,
    "batch_size": [20, 40],
    "hidden_layers": [1, 2],
    "seed": 3,
}


@pytest.fixture
def server(commands):
    """The address of a coordinator that serves studies."""
    address = f"127.0.0.1:{29901 + os.getpid() % 90}"
    process = commands.start("nhop-coordinator", "--serve", address, "--output", "served")
    line = process.stdout.readline()
    assert address in line, process.communicate(timeout=10)
    yield address
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_the_example_client_prints_losses_while_they_stream(commands, server):
    client = subprocess.run(
        [sys.executable, ROOT / "examples" / "client.py", server],
        env=commands.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    assert client.stdout.count("loss") > 3, client.stdout
    (directory,) = [file.parent for file in (commands.folder / "served").glob("*/summary.json")]
    assert summary(directory)["status"] == "completed"


def test_two_studies_at_once_through_the_client(commands, server):
    import nhop

    with nhop.Client(server) as client:
        first, second = (client.submit({**STUDY, "seed": seed}).study_id for seed in (1, 2))
        for study_id in (first, second):
            for _ in client.watch(study_id):
                pass
            assert client.get(study_id).counts.completed == 2
            best = client.best(study_id)
            assert best.loss == min(trial.loss for trial in client.trials(study_id))
        assert [study.study_id for study in client.list()] == [first, second]
        with pytest.raises(nhop.ConfigError, match="lerning_rate"):
            client.submit({"lerning_rate": 1})


def test_reflection_lists_the_services(server):
    with grpc.insecure_channel(server) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert {"nhop.v1.StudyService", "grpc.health.v1.Health"} <= names


def test_ctrl_c_ends_a_study_within_a_running_loop(commands):
    (commands.folder / "loop.py").write_text(
        "import asyncio, nhop\n"
        "async def main():\n"
        "    nhop.run_study({'opt_stages': [[10_000_000, 1]], 'cluster': {'ps': 0, 'workers': 1},\n"
        "        'data_instances': 500, 'batch_size': 20, 'train_tolerance': 0}, output='out')\n"
        "asyncio.run(main())\n"
    )
    program = subprocess.Popen(
        [sys.executable, "loop.py"], cwd=commands.folder, env=commands.environment, stderr=subprocess.PIPE
    )
    commands.wait_for(lambda: commands.processes("nhop-worker-0"), "a worker")
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=20)
    assert b"KeyboardInterrupt" in err
    assert commands.processes() == []


def test_a_file_is_submitted_with_what_stands_beside_it(commands, server):
    import nhop

    project = commands.folder / "project"
    project.mkdir()
    (project / "beside.py").write_text("from nhop_models.regressor import RegressorNN as Own\n")
    (project / "t.csv").write_text("\n".join(f"{i},{2 * i}" for i in range(50)))
    (project / "study.yaml").write_text(
        "nn_model: beside:Own\nload_data: true\nload_data_dir: t.csv\nopt_stages: [[20, 1]]\n"
        "cluster: {ps: 0, workers: 1}\nhidden_layers: [1, 2]\nactivation: [relu]\nbatch_size: 10\n"
    )
    with nhop.Client(server) as client:
        study = client.submit(project / "study.yaml")
        *_, last = client.watch(study.study_id)
    assert last.counts.completed == 1, last


def test_a_program_runs_a_study_with_a_model_of_its_own(commands):
    (commands.folder / "agent.py").write_text("SLOPE = 2.0\n")
    (commands.folder / "program.py").write_text(
        "import numpy as np\n"
        "from nhop_models import NNModel\n"
        "class Line(NNModel):\n"
        "    def load_data(self, hp):\n"
        "        import agent\n"
        "        x = np.linspace(-1, 1, 200)[:, None]\n"
        "        return (x, agent.SLOPE * x), (x, agent.SLOPE * x)\n"
        "    def build_model(self, hp):\n"
        "        import keras\n"
        "        return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(hp['width']),"
        " keras.layers.Dense(1)])\n"
        "if __name__ == '__main__':\n"
        "    import nhop\n"
        "    result = nhop.run_study({'nn_model': 'program:Line', 'search_space': {'width': [2, 5]},\n"
        "        'opt_stages': [[200, 2]], 'cluster': {'ps': 0, 'workers': 1}, 'learning_rate': 0.05,\n"
        "        'train_optimizer': 'Adam', 'batch_size': 20}, output='out')\n"
        "    print(result.study.state.value, sorted(t.parameters['width'] for t in result.trials))\n"
    )
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=commands.folder,
        env=commands.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("completed [")
    assert summary(commands.folder / "out")["best"]["loss"] < 0.1
