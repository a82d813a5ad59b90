"""Steps a second of single attempts, driven at the zygote's socket; and how fast tensors could travel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import standard
from benchmarks.tasks import zygote
from nhop_models.contract import Outcome
from tests.nhop_models.driver import Attempt, ZygoteDriver, cluster, make_spec

ROOT = str(Path(__file__).resolve().parents[1])
WIDE = {**standard.parameters(0), "hidden_layers": [1024] * 4, "batch_size": 100, "train_optimizer": "Adam"}
WIDE_PARAMETERS = 4 * 1024 + 1024 + 3 * (1024 * 1024 + 1024) + 1024 + 1
"""Of 4 features, four layers of 1,024 units, one output."""

ECHO = """
import sys, grpc
from concurrent.futures import ThreadPoolExecutor
size = 1 << 26
server = grpc.server(ThreadPoolExecutor(1), options=[
    ("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)])
handler = grpc.method_handlers_generic_handler(
    "echo.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(lambda data, context: data)})
server.add_generic_rpc_handlers((handler,))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


def run(driver: ZygoteDriver, ps: int, workers: int, **changes: Any) -> Outcome:
    """Runs one attempt to its end; the chief's outcome."""
    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(
            **(cluster(ps, workers) if ps else {}),
            **{
                "settings": standard.SETTINGS,
                "parameters": standard.parameters(0),
                "train_epoch": standard.TRAIN_EPOCH,
                "start_limit": 60.0,
                "report_interval": 0.25,
                **changes,
            },
        )
        attempt = Attempt(driver, Path(folder), spec)
        attempt.start(*[f"ps/{i}" for i in range(ps)], *[f"worker/{i}" for i in range(workers)])
        outcome = attempt.wait("worker/0")
        attempt.stop()
    return outcome


def rates(kinds: Mapping[str, Mapping[str, Any]], repetitions: int = 3) -> dict[str, list[float]]:
    """Steps a second of each kind (arguments of ``run``), in turns: noise of the machine meets all."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with zygote() as driver:
        for repetition in range(repetitions):
            for name, arguments in kinds.items():
                outcome = run(driver, **{"parameters": standard.parameters(repetition), **arguments})
                plain = outcome.metrics.get("steps_per_second")
                found[name].append(plain or outcome.step / outcome.phase_seconds["steps"])
    return found


def phases(ps: int, workers: int, repetitions: int = 5) -> list[Outcome]:
    """Outcomes of standard attempts, for their phases."""
    with zygote() as driver:
        return [
            run(driver, ps, workers, parameters=standard.parameters(n), keep_model=True)
            for n in range(repetitions)
        ]


def echo_bytes_per_second(size: int, repetitions: int = 30) -> float:
    """Bytes that go there and back over loopback gRPC in messages of ``size`` bytes, both ways counted."""
    import grpc

    server = subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        options = [
            ("grpc.max_receive_message_length", 1 << 26),
            ("grpc.max_send_message_length", 1 << 26),
        ]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary("/echo.Echo/Echo")
            data = bytes(size)
            call(data, wait_for_ready=True)
            begin = time.monotonic()
            for _ in range(repetitions):
                call(data)
            return 2 * size * repetitions / (time.monotonic() - begin)
    finally:
        server.communicate("")
