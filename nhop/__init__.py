"""NHOP for Python programs: run a study here, or talk to a coordinator that serves them.

    import nhop

    result = nhop.run_study({"opt_stages": [[300, 8]], "cluster": {"ps": 0, "workers": 1}})
    print(result.study.best)

    with nhop.Client("127.0.0.1:7000") as client:
        study = client.submit({"opt_stages": [[300, 8]]})
        for update in client.watch(study.study_id):
            print(update)

The generated protobuf modules are in ``nhop.v1``, for plain gRPC clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.errors import ConfigError, HostsError, NhopError, StudyFailedError, UsageError
    from coordinator.runtime import StudyResult
    from nhop.api import run_study
    from nhop.client import Client, CoordinatorError, StudyExistsError, StudyNotFoundError, UnreachableError

__all__ = [
    "Client",
    "ConfigError",
    "CoordinatorError",
    "HostsError",
    "NhopError",
    "StudyExistsError",
    "StudyFailedError",
    "StudyNotFoundError",
    "StudyResult",
    "UnreachableError",
    "UsageError",
    "run_study",
]

_HOMES = {
    "run_study": "nhop.api",
    "Client": "nhop.client",
    "CoordinatorError": "nhop.client",
    "StudyExistsError": "nhop.client",
    "StudyNotFoundError": "nhop.client",
    "UnreachableError": "nhop.client",
    "StudyResult": "coordinator.runtime",
}


def __getattr__(name: str) -> Any:
    # Lazily: `import nhop` stays cheap, and `from nhop.v1 import ...` loads nothing of the coordinator.
    if name not in __all__:
        raise AttributeError(f"module 'nhop' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "coordinator.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
