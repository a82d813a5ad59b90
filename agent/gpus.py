"""GPUs of this host: what there is, and which processes compute on them, behind an interface.

Calls of an inventory may take long (a driver that wakes up) or never return (one that hangs):
the event loop makes them through ``agent.gpu_watch`` only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU, or an instance of one that is partitioned (MIG); ``uuid`` as CUDA_VISIBLE_DEVICES takes it."""

    uuid: str
    name: str
    memory_bytes: int


class GpusUnreadableError(Exception):
    """The driver does not say what it is asked; the message has its words."""


class GpuInventory(Protocol):
    """What is asked about GPUs. Both calls may block."""

    def devices(self) -> Sequence[GpuDevice]:
        """All that may be leased, in a fixed order; raises GpusUnreadableError."""

    def pids(self, uuid: str) -> frozenset[int]:
        """Processes that compute on a GPU; raises GpusUnreadableError.

        In a container these may be pids of another namespace, which mean nothing here.
        """


class NoGpus:
    """An inventory without any."""

    def devices(self) -> Sequence[GpuDevice]:
        """None."""
        return ()

    def pids(self, uuid: str) -> frozenset[int]:
        """None."""
        raise GpusUnreadableError(f"there is no GPU {uuid}")


no_gpus = NoGpus()


class NvmlInventory:
    """The GPUs that NVIDIA's driver tells of, less those that the agent's CUDA_VISIBLE_DEVICES hides.

    A host without driver, library or device has none, and nothing is said about it.
    """

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._said: set[str] = set()

    def devices(self) -> Sequence[GpuDevice]:
        """All that may be leased, in the driver's order; raises GpusUnreadableError."""
        import pynvml

        silent = (
            pynvml.NVMLError_LibraryNotFound,
            pynvml.NVMLError_DriverNotLoaded,
            pynvml.NVMLError_NoData,
            pynvml.NVMLError_NotFound,
        )
        try:
            pynvml.nvmlInit()
            found = list(self._find(pynvml))
        except silent:
            return ()
        except pynvml.NVMLError as error:
            raise GpusUnreadableError(str(error)) from error
        return visible(found, os.environ.get(VISIBLE))

    def pids(self, uuid: str) -> frozenset[int]:
        """Processes that compute on a GPU; none where this driver never tells them."""
        import pynvml

        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handles[uuid])
        except KeyError:
            raise GpusUnreadableError(f"there is no GPU {uuid}") from None
        except pynvml.NVMLError_NotSupported:
            self._say_once(
                "the driver does not tell which processes use a GPU: GPUs are free again when the processes "
                "of their attempt are gone, whether or not their memory is"
            )
            return frozenset()
        except pynvml.NVMLError as error:
            raise GpusUnreadableError(str(error)) from error
        return frozenset(process.pid for process in running)

    def _find(self, nvml: Any) -> Iterator[GpuDevice]:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                for handle in _instances(nvml, nvml.nvmlDeviceGetHandleByIndex(index)):
                    uuid = nvml.nvmlDeviceGetUUID(handle)
                    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total
                    self._handles[uuid] = handle
                    yield GpuDevice(uuid, nvml.nvmlDeviceGetName(handle), memory)
            except nvml.NVMLError as error:  # one that is lost takes the others not with it
                self._say_once(f"GPU {index} is left out: {error} (see nvidia-smi)")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)


def _instances(nvml: Any, handle: Any) -> list[Any]:
    """The instances of a partitioned GPU (MIG); otherwise the GPU itself."""
    try:
        mode, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return [handle]
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError_NotFound:
            continue
    return found


def visible(devices: Sequence[GpuDevice], setting: str | None) -> Sequence[GpuDevice]:
    """The devices that a value of CUDA_VISIBLE_DEVICES leaves, read as CUDA does; None: all.

    It names them by index or by the beginning of their UUID; the first that does not exist ends the list.
    """
    if setting is None:
        return devices
    chosen: list[GpuDevice] = []
    for word in (part.strip() for part in setting.split(",")):
        if word.isdecimal():
            matching = [devices[int(word)]] if int(word) < len(devices) else []
        else:
            matching = [device for device in devices if word and device.uuid.startswith(word)]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen
