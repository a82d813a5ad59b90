"""What is said of GPUs, from NVIDIA's library as it is on a host without any, and from one made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from agent.gpus import GpuDevice, GpusUnreadableError, NvmlInventory, no_gpus, visible

A, B = GpuDevice("GPU-aa", "T4", 16), GpuDevice("GPU-bb", "T4", 16)


class Library:
    """pynvml with two GPUs; a handle is an index, or a text for an instance of a partitioned GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.says("Init", lambda: None)
        self.says("DeviceGetCount", lambda: 2)
        self.says("DeviceGetHandleByIndex", lambda index: index)
        self.says("DeviceGetUUID", lambda h: h if isinstance(h, str) else (A, B)[h].uuid)
        self.says("DeviceGetName", lambda _: "T4")
        self.says("DeviceGetMemoryInfo", lambda _: type("Memory", (), {"total": 16}))
        self.refuses("DeviceGetMigMode", pynvml.NVML_ERROR_NOT_SUPPORTED)
        self.says(
            "DeviceGetComputeRunningProcesses",
            lambda index: [type("Process", (), {"pid": 100 + index, "usedGpuMemory": None})],
        )

    def says(self, function: str, answer: Callable[..., Any]) -> None:
        self._patch.setattr(pynvml, f"nvml{function}", answer)

    def refuses(self, function: str, code: int) -> None:
        def refuse(*_: object) -> None:
            raise pynvml.NVMLError(code)

        self.says(function, refuse)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def test_a_host_without_a_driver_has_none_and_nothing_is_said(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    for code in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
        library.refuses("Init", code)
        assert list(NvmlInventory().devices()) == []
    assert caplog.text == ""


def test_a_driver_in_trouble_is_told_in_its_words(library: Library) -> None:
    library.refuses("Init", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(GpusUnreadableError, match=r"(?i)version mismatch"):
        NvmlInventory().devices()


def test_gpus_in_the_drivers_order(library: Library) -> None:
    assert list(NvmlInventory().devices()) == [A, B]


def test_a_gpu_that_is_lost_is_left_out_and_named(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    def handle(index: int) -> int:
        if index == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    library.says("DeviceGetHandleByIndex", handle)
    assert list(NvmlInventory().devices()) == [B]
    assert "GPU 0 is left out" in caplog.text


def test_instances_of_a_partitioned_gpu_stand_for_it(library: Library) -> None:
    def instance(_: object, index: int) -> str:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"MIG-{index}"

    library.says("DeviceGetCount", lambda: 1)
    library.says("DeviceGetMigMode", lambda _: [pynvml.NVML_DEVICE_MIG_ENABLE] * 2)
    library.says("DeviceGetMaxMigDeviceCount", lambda _: 3)
    library.says("DeviceGetMigDeviceHandleByIndex", instance)
    assert [device.uuid for device in NvmlInventory().devices()] == ["MIG-0", "MIG-2"]


def test_what_cuda_visible_devices_of_the_agent_hides_is_not_there(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert list(NvmlInventory().devices()) == [B]


def test_processes_on_a_gpu(library: Library) -> None:
    inventory = NvmlInventory()
    inventory.devices()
    assert inventory.pids(B.uuid) == {101}


def test_a_driver_that_never_tells_processes_is_said_once(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    library.refuses("DeviceGetComputeRunningProcesses", pynvml.NVML_ERROR_NOT_SUPPORTED)
    inventory = NvmlInventory()
    inventory.devices()
    assert [inventory.pids(A.uuid), inventory.pids(A.uuid)] == [frozenset(), frozenset()]
    assert caplog.text.count("does not tell which processes") == 1


def test_processes_that_cannot_be_told_now(library: Library) -> None:
    inventory = NvmlInventory()
    inventory.devices()
    library.refuses("DeviceGetComputeRunningProcesses", pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(GpusUnreadableError, match=r"(?i)lost"):
        inventory.pids(A.uuid)


def test_no_gpus() -> None:
    assert list(no_gpus.devices()) == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, [A, B]),
        ("", []),
        ("0,1", [A, B]),
        ("1,0", [B, A]),
        (" 1 ", [B]),
        ("GPU-bb", [B]),
        ("GPU-b,GPU-a", [B, A]),
        ("GPU-", []),  # of two
        ("1,7,0", [B]),  # as CUDA: what follows one that does not exist is hidden, too
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(setting: str | None, expected: list[GpuDevice]) -> None:
    assert list(visible([A, B], setting)) == expected
