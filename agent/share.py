"""What a task is told of its share of this host: threads, and the GPUs that it may see."""

from __future__ import annotations

from collections.abc import Iterable

from agent.domain import TaskLease
from agent.gpus import VISIBLE
from nhop_models.contract import GPU_SHARE_VARIABLE


def threads(leases: Iterable[TaskLease], cores: int, slots: int) -> int:
    """Threads of each of TensorFlow's pools in every task of an attempt.

    A worker has as many as its slots are of the host's, in cores, so that a host whose slots are all
    taken runs about one thread for each core; at least 1. Parameter servers, which hold no slot, have
    as many as a worker: they work while workers wait for them, and one thread would serve one
    worker's push at a time.
    """
    least = min((lease.slots for lease in leases if lease.slots > 0), default=1)
    return max(1, cores * least // slots)


def environment(lease: TaskLease) -> dict[str, str]:
    """Variables on top of the zygote's: the GPUs by UUID, none for a task without any."""
    variables = {VISIBLE: ",".join(lease.gpus)}
    if lease.gpus and lease.share < 1:
        variables[GPU_SHARE_VARIABLE] = repr(float(lease.share))
    return variables
