"""The real zygote, with real TensorFlow; only that parameter servers print the GPUs that they see.

(A worker's user code can do that by itself.)
"""

from __future__ import annotations

import json
import os
from typing import Any

from nhop_models.runtime import zygote


def seen() -> dict[str, str | None]:
    """What the environment of this process says about GPUs."""
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NHOP_GPU_SHARE")}


def main() -> None:
    zygote.import_frameworks()
    from nhop_models.runtime import ps

    run = ps.run

    def tell_and_run(task: Any) -> Any:
        print("SEEN", json.dumps(seen()), flush=True)
        return run(task)

    ps.run = tell_and_run
    zygote.main()


if __name__ == "__main__":
    main()
