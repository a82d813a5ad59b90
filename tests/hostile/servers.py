"""The servers under attack, each a process of its own, and what may never be seen of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nhop.v1 import agent_pb2, study_pb2, types_pb2
from tests.contract.harness import ROOT, requirements, start_request
from tests.fakes.gpus import write_gpus
from tests.hostile.messages import CANARY, varint

DEADLINE = 30.0
OPEN_SECONDS = 0.05
"""How long a stream is watched that does not end by itself."""

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
"""How a call may end that is not granted. UNKNOWN and INTERNAL would be defects."""

MOST_GROWTH = 256 << 20
"""Bytes of memory that a server may need at once to refuse a message."""

_BAD_LOG = re.compile(
    r"Traceback|\bERROR\b|\bCRITICAL\b|[Uu]nexpected|please report|never (awaited|retrieved)"
)
_BAD_DETAILS = re.compile(r"<class |Traceback|Unexpected|object at 0x|Error\(|metadata size|Stream removed")
_ENDLESS = {"StreamEvents", "ReadLog", "WatchStudy", "ReadTaskLog", "Watch"}


def methods(*files: Any) -> dict[str, MethodDescriptor]:
    """Every method of every service of these files, by its path."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


class Answer:
    """How a call ended. ``code`` None: it was still open when nobody waited any longer."""

    def __init__(self, code: grpc.StatusCode | None, details: str, messages: Sequence[bytes], seconds: float):
        self.code = code
        self.details = details
        self.messages = messages
        self.seconds = seconds

    @property
    def granted(self) -> bool:
        """Whether it did what was asked."""
        return self.code is grpc.StatusCode.OK or self.code is None


class Server:
    """A server in ``place``: its own state is in one folder there, and nothing else may change."""

    state: str
    files: tuple[Any, ...]
    command: list[str]

    def __init__(self, place: Path) -> None:
        self.place = place
        self.address = f"unix:{place}/server.sock"
        self.log = place / "stderr"
        self._read = 0
        for name in ("cwd", "home", "tmp"):
            (place / name).mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(place / "home")}
        environment |= {"TMPDIR": str(place / "tmp"), "XDG_RUNTIME_DIR": str(place / "tmp")}
        self.prepare()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=place / "cwd", env=environment,
                start_new_session=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line, self.log.read_text()
        options = (("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0))
        self.channel = grpc.insecure_channel(self.address, options=options)
        self.methods = self.all_methods()
        self.surroundings = self._surroundings()
        self.good()
        self.memory = self._memory("VmRSS")

    @classmethod
    def all_methods(cls) -> dict[str, MethodDescriptor]:
        """What it serves, by path."""
        return methods(*cls.files, health_pb2, reflection_pb2)

    def prepare(self) -> None:
        """Makes what the server wants to find."""

    def close(self) -> None:
        """Ends it in order."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()

    # --- calls --------------------------------------------------------------------------------

    def call(
        self, path: str, messages: Iterable[bytes], timeout: float | None = None, **options: Any
    ) -> Answer:
        """Sends these messages and half-closes: on the wire all kinds of calls are the same."""
        if timeout is None:
            timeout = OPEN_SECONDS if path.rpartition("/")[2] in _ENDLESS else DEADLINE
        begun = time.monotonic()
        call = self.channel.stream_stream(path)(iter(messages), timeout=timeout, **options)
        answers = []
        try:
            for message in call:
                answers.append(message)
        except grpc.RpcError as error:
            if error is not call:
                raise
        code, details = call.code(), call.details() or ""
        seconds = time.monotonic() - begun
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout == OPEN_SECONDS:
            code = None
        return Answer(code, details, answers, seconds)

    def cancel(self, path: str, messages: Sequence[bytes]) -> None:
        """Sends these messages, and cancels the call before it is half-closed."""
        sent, cancelled = threading.Event(), threading.Event()

        def requests() -> Iterator[bytes]:
            yield from messages
            sent.set()
            cancelled.wait(DEADLINE)

        call = self.channel.stream_stream(path)(requests(), timeout=DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while not sent.wait(0.01) and call.is_active():  # it may be refused before all is sent
            assert time.monotonic() < deadline
        call.cancel()
        cancelled.set()

    def judge(self, answer: Answer, *more: grpc.StatusCode) -> None:
        """Fails where an answer, or what the server says meanwhile, is not as it must be."""
        assert answer.granted or answer.code in REFUSALS or answer.code in more, (answer.code, answer.details)
        assert answer.code is None or not _BAD_DETAILS.search(answer.details), (answer.code, answer.details)
        assert answer.seconds < DEADLINE, (answer.code, answer.details)
        self.check_log()

    def good(self) -> None:
        """A call that must be answered."""
        raise NotImplementedError

    # --- what may never be seen ------------------------------------------------------------------

    def check_log(self) -> None:
        """Nothing that nobody foresaw is in the log."""
        if self.log.stat().st_size == self._read:
            return
        with self.log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode(errors="replace")
        self._read += len(text.encode())
        self._read = self.log.stat().st_size
        assert not _BAD_LOG.search(text), text[:4000]

    def check(self) -> None:
        """It lives, serves, has not grown, and has touched nothing outside its state directory."""
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        self.good()
        self.check_log()
        assert self._surroundings() == self.surroundings
        assert not Path(CANARY).exists()
        grown = self._memory("VmHWM") - self.memory
        assert grown < MOST_GROWTH, f"{grown >> 20} MiB of memory"

    def _surroundings(self) -> dict[str, str]:
        """All that is beside the state directory, with what is in it."""
        found = {}
        beside = [path for path in self.place.iterdir() if path.name not in (self.state, "stderr")]
        for path in sorted([*beside, *(inner for outer in beside for inner in outer.rglob("*"))]):
            name = path.relative_to(self.place).as_posix()
            if name.startswith("tmp/nhop-"):
                continue
            mode = path.lstat().st_mode
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
            found[name] = f"{mode:o} {content}"
        return found

    def _memory(self, what: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{what}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10


class AgentServer(Server):
    """The agent, with the zygote of the tests."""

    state = "state"
    files = (agent_pb2,)

    def prepare(self) -> None:
        write_gpus(self.place / "gpus.json", "GPU-a")
        values = {"listen": self.address, "state_dir": f"{self.place}/state", "slots": 2}
        values["gpus"] = f"{self.place}/gpus.json"
        values["parent_pipe"] = 0  # it ends when these tests do, however they end
        self.command = [str(ROOT / "tests/fakes/run_agent.py"), json.dumps(values)]
        self._trial = 100_000

    def good(self) -> None:
        self.inventory()

    def inventory(self) -> agent_pb2.GetInventoryResponse:
        """What the host has."""
        answer = self.call("/nhop.v1.AgentService/GetInventory", [b""])
        assert answer.code is grpc.StatusCode.OK, (answer.code, answer.details)
        return agent_pb2.GetInventoryResponse.FromString(answer.messages[0])

    def attempts(self) -> set[str]:
        """The attempts that there are."""
        names = (path.name for path in (self.place / "state/attempts").iterdir())
        return {name for name in names if not name.startswith(".")}

    def new_attempt(self, script: dict[str, Any] | None = None) -> tuple[types_pb2.AttemptId, Any]:
        """A prepared attempt that takes no slot, and its leases; started where there is a script."""
        self._trial += 1
        attempt = types_pb2.AttemptId(study_id="study", trial=self._trial, attempt=1)
        request = agent_pb2.PrepareAttemptRequest(attempt=attempt, tasks=requirements("ps/0"))
        request.tasks.add(task=types_pb2.TaskId(role=types_pb2.TASK_ROLE_WORKER), slots=0, port=True)
        answer = self.call("/nhop.v1.AgentService/PrepareAttempt", [request.SerializeToString()])
        assert answer.code is grpc.StatusCode.OK, (answer.code, answer.details)
        leases = agent_pb2.PrepareAttemptResponse.FromString(answer.messages[0]).leases
        if script is not None:
            message = start_request(attempt, leases, script)
            answer = self.call("/nhop.v1.AgentService/StartAttempt", [message.SerializeToString()])
            assert answer.code is grpc.StatusCode.OK, (answer.code, answer.details)
        return attempt, leases

    def put_into(
        self, messages: Sequence[bytes], trial: int, addresses: Sequence[str], script: dict[str, Any] | None
    ) -> list[bytes]:
        """The messages with a new attempt, and what it was leased, in the place of what stands for them."""
        attempt, leases = self.new_attempt(script)
        changes = [(varint(trial), varint(attempt.trial))]
        changes += [(a.encode(), lease.address.encode()) for a, lease in zip(addresses, leases, strict=True)]
        assert all(len(before) == len(after) for before, after in changes), changes
        for before, after in changes:
            messages = [message.replace(before, after) for message in messages]
        return list(messages)

    def newest(self) -> set[str]:
        """The attempt that was made last, if it is still there."""
        return {f"study-t{self._trial}-a1"} & self.attempts()

    def stop(self, names: Iterable[str]) -> None:
        """Ends attempts."""
        for name in names:
            stop = agent_pb2.StopAttemptRequest(attempt=_attempt(name), reason=agent_pb2.STOP_REASON_RELEASED)
            answer = self.call("/nhop.v1.AgentService/StopAttempt", [stop.SerializeToString()])
            assert answer.code is grpc.StatusCode.OK, (answer.code, answer.details)

    def bundles(self) -> list[str]:
        """What is where bundles are kept."""
        return [path.name for path in (self.place / "state/bundles").iterdir() if path.name != ".boot"]

    def wait_until_clean(self) -> None:
        """Until nothing is left of what was not finished."""
        deadline = time.monotonic() + DEADLINE
        while left := [p for p in (self.place / "state").rglob(".*") if p.name != ".boot"]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)

    def clear(self) -> None:
        """Ends and forgets all attempts; what they held must be free then."""
        self.stop(self.attempts())
        deadline = time.monotonic() + DEADLINE
        while left := self.attempts():
            assert time.monotonic() < deadline, left
            for study in {_attempt(name).study_id for name in left}:
                request = agent_pb2.StreamEventsRequest()
                request.subscribe.study_id = study
                for attempt in map(_attempt, left):
                    if attempt.study_id == study:
                        request.subscribe.positions.add(attempt=attempt, source="agent", sequence=2**62)
                self.call("/nhop.v1.AgentService/StreamEvents", [request.SerializeToString()], 1.0)
        inventory = self.inventory()
        assert inventory.free_slots == inventory.slots
        assert [gpu.free for gpu in inventory.gpus] == [1.0]


def _attempt(name: str) -> types_pb2.AttemptId:
    """From the name of its folder."""
    found = re.fullmatch(r"(.*)-t(\d+)-a(\d+)", name)
    assert found is not None, name
    return types_pb2.AttemptId(study_id=found[1], trial=int(found[2]), attempt=int(found[3]))


class CoordinatorServer(Server):
    """A served coordinator, with a scripted agent."""

    state = "runs"
    files = (study_pb2,)

    def prepare(self) -> None:
        script = str(ROOT / "tests/fakes/run_coordinator.py")
        self.command = [script, self.address, f"unix:{self.place}/agent.sock", f"{self.place}/runs"]

    def good(self) -> None:
        self.studies()

    def studies(self) -> dict[str, study_pb2.Study]:
        """All studies."""
        answer = self.call("/nhop.v1.StudyService/ListStudies", [b""])
        assert answer.code is grpc.StatusCode.OK, (answer.code, answer.details)
        studies = study_pb2.ListStudiesResponse.FromString(answer.messages[0]).studies
        return {study.study_id: study for study in studies}

    def stop_all(self, but: str = "") -> list[str]:
        """Stops every study but one; those that have not ended."""
        active = (study_pb2.STUDY_STATE_RUNNING, study_pb2.STUDY_STATE_STOPPING)
        left = [name for name, study in self.studies().items() if study.state in active and name != but]
        for study_id in left:
            request = study_pb2.StopStudyRequest(study_id=study_id)
            self.call("/nhop.v1.StudyService/StopStudy", [request.SerializeToString()])
        return left

    def clear(self) -> None:
        """Stops every study and waits for their ends."""
        deadline = time.monotonic() + DEADLINE
        while left := self.stop_all():
            assert time.monotonic() < deadline, left
            watch = study_pb2.WatchStudyRequest(study_id=left[0])
            self.call("/nhop.v1.StudyService/WatchStudy", [watch.SerializeToString()], 5.0)


KINDS: dict[str, type[Server]] = {"agent": AgentServer, "coordinator": CoordinatorServer}


@contextlib.contextmanager
def served(kind: type[Server], place: Path) -> Iterator[Server]:
    """A server for the time of the context; it must end in order, and as it began."""
    server = kind(place)
    try:
        yield server
        server.check()
    finally:
        server.close()
