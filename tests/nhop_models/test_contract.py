"""The files of the attempt directory."""

from __future__ import annotations

import math
import os
import select
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhop_models.contract import (
    DOORBELL_FILE,
    TASKS_FOLDER,
    FailureKind,
    Outcome,
    Record,
    RecordKind,
    SpoolError,
    SpoolWriter,
    TaskId,
    TaskRole,
    TaskSpec,
    TaskStatus,
    decode_records,
    encode_record,
    lease_expired,
    write_lease,
)

CHIEF = TaskId(TaskRole.WORKER, 0)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / TASKS_FOLDER).mkdir()
    return tmp_path


def records_of(directory):
    path = directory / TASKS_FOLDER / "worker-0.reports"
    return [record for record, _ in decode_records(path.read_bytes(), path)]


def test_records_come_back_as_written(directory):
    spool = SpoolWriter(directory, CHIEF)
    spool.append(RecordKind.READY, {})
    spool.append(RecordKind.REPORT, {"step": 3, "train_loss": math.inf, "val_loss": None, "metrics": {}})
    ready, report = records_of(directory)
    assert ready.kind is RecordKind.READY
    assert report.payload == {"step": 3, "train_loss": math.inf, "val_loss": None, "metrics": {}}


def test_a_record_rings_the_doorbell_and_needs_none(directory):
    spool = SpoolWriter(directory, CHIEF)
    spool.append(RecordKind.READY, {})
    os.mkfifo(directory / DOORBELL_FILE)
    bell = os.open(directory / DOORBELL_FILE, os.O_RDWR | os.O_NONBLOCK)
    try:
        spool.append(RecordKind.READY, {})
        assert select.select([bell], [], [], 5.0)[0]
        for _ in range(70_000):  # more than a FIFO holds: nobody reads it
            spool.append(RecordKind.READY, {})
    finally:
        os.close(bell)
    assert len(records_of(directory)) == 70_002


def test_a_record_that_finds_no_room_leaves_no_part_of_it(directory):
    import resource

    spool = SpoolWriter(directory, CHIEF)
    spool.append(RecordKind.READY, {})
    size = (directory / TASKS_FOLDER / "worker-0.reports").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="space"):
            spool.append(RecordKind.REPORT, {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(records_of(directory)) == 1
    spool.append(RecordKind.READY, {})
    assert len(records_of(directory)) == 2


@given(st.lists(st.integers()), st.integers(min_value=0))
def test_a_torn_tail_is_left_for_later(steps, cut):
    from pathlib import Path

    data = b"".join(encode_record(Record(RecordKind.REPORT, 0.0, {"step": s})) for s in steps)
    torn = data[: cut % (len(data) + 1)]
    found = [r.payload["step"] for r, _ in decode_records(torn, Path("x"))]
    assert found == steps[: len(found)]
    if torn == data:
        assert found == steps


def test_reading_goes_on_where_it_stopped(tmp_path):
    data = b"".join(encode_record(Record(RecordKind.REPORT, 0.0, {"step": s})) for s in range(3))
    (_, first_end), *_ = decode_records(data, tmp_path)
    rest = [(r.payload["step"], end) for r, end in decode_records(data[first_end:], tmp_path, first_end)]
    assert [step for step, _ in rest] == [1, 2]
    assert rest[-1][1] == len(data)


@pytest.mark.parametrize("place", [2, 5, 20])
def test_a_flipped_byte_is_found(tmp_path, place):
    data = bytearray(encode_record(Record(RecordKind.REPORT, 0.0, {"step": 1})) * 2)
    data[place] ^= 0xFF
    with pytest.raises(SpoolError) as caught:
        list(decode_records(bytes(data), tmp_path, 100))
    assert caught.value.offset == 100


def test_what_an_exception_says_at_length_is_cut_before_it_is_written(tmp_path):
    long = "x" * 1_000_000
    Outcome(TaskStatus.FAILED, FailureKind.USER_CODE, long, long, notes=(long,)).write(tmp_path / "o.json")
    assert (tmp_path / "o.json").stat().st_size < 16_384
    assert Outcome.read(tmp_path / "o.json").failure_kind is FailureKind.USER_CODE


def test_an_outcome_comes_back_as_written(tmp_path):
    outcome = Outcome(
        TaskStatus.FAILED, FailureKind.DIVERGED, "m", "d", 5, math.nan, None, {"a": 1.0}, {"data": 0.1}
    )
    path = tmp_path / "worker-0.outcome.json"
    assert Outcome.read(path) is None
    outcome.write(path)
    read = Outcome.read(path)
    assert read is not None
    assert math.isnan(read.train_loss)
    assert (read.status, read.failure_kind, read.step) == (TaskStatus.FAILED, FailureKind.DIVERGED, 5)
    assert [file.name for file in tmp_path.iterdir()] == ["worker-0.outcome.json"]


def test_what_user_code_says_is_made_fit_to_be_sent_and_shown(tmp_path):
    path = tmp_path / "worker-0.outcome.json"
    said = "caf\udce9 \x1b[31mred\0\nü" + "x" * 5000
    Outcome(TaskStatus.FAILED, FailureKind.USER_CODE, said, detail=said).write(path)
    read = Outcome.read(path)
    read.message.encode()
    assert read.message.startswith("caf\ufffd \ufffd[31mred\ufffd\nü")
    assert len(read.message) == 1000
    assert len(read.detail) > 5000


def test_a_spec_comes_back_as_written(tmp_path):
    spec = TaskSpec(
        "s", 1, 2, "Regressor", {"a": [1]}, {"b": None}, 10, 0.0, 3, ps=("h:1",), workers=("h:2",)
    )
    spec.write(tmp_path)
    assert TaskSpec.read(tmp_path) == spec


@pytest.mark.parametrize("text", ["worker/0", "worker-0"])
def test_tasks_are_parsed_from_both_forms(text):
    assert TaskId.parse(text) == CHIEF
    assert CHIEF.is_chief
    assert str(CHIEF) == "worker/0"


@pytest.mark.parametrize("text", ["worker", "worker/x", "chief/0", "worker/-1", ""])
def test_other_texts_are_no_tasks(text):
    with pytest.raises(ValueError, match=r"task|TaskRole"):
        TaskId.parse(text)


def test_a_lease_ends(tmp_path):
    assert lease_expired(tmp_path), "none was ever given"
    write_lease(tmp_path, 60.0)
    assert not lease_expired(tmp_path)
    write_lease(tmp_path, -0.001)
    assert lease_expired(tmp_path)
