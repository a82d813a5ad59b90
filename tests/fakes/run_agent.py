"""``nhop-agent`` with a fake zygote: a process of its own for tests, as a user's would be.

Prints what ``nhop-agent`` prints. Takes the values of AgentConfig as one JSON object, and besides
``zygote_arguments`` for the fake zygote, ``zygote``: another script in its place, and ``gpus``: the file
of a fake inventory (``tests.fakes.gpus``); without it the host has no GPU. ``tls`` is the folder of its
certificate, ``told_a_second`` how many refusals it logs within a second, ``check_seconds``
the time between two looks at the certificate.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from agent.cli import serve
from agent.config import AgentConfig, ListenAddress
from agent.gpus import no_gpus
from agent.task_user import parse_task_user
from nhop.security import rotation, telling
from nhop.security.identity import Role
from nhop.security.rotation import Rotation
from tests.fakes.gpus import FileGpus


def main() -> None:
    values = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    values["listen"] = ListenAddress.parse(values["listen"])
    values["state_dir"] = Path(values["state_dir"])
    values["gpus"] = FileGpus(Path(values["gpus"])) if "gpus" in values else no_gpus
    if "task_user" in values:
        values["task_user"] = parse_task_user(values["task_user"])
    zygote = Path(__file__).with_name(values.pop("zygote", "zygote.py"))
    rotation.CHECK_SECONDS = values.pop("check_seconds", rotation.CHECK_SECONDS)
    telling.TOLD_A_SECOND = values.pop("told_a_second", telling.TOLD_A_SECOND)
    if "tls" in values:
        values["tls"] = Rotation(Path(values["tls"]), Role.AGENT)
    extra = values.pop("zygote_arguments", [])
    config = AgentConfig(**values, zygote_command=(sys.executable, str(zygote), *extra))
    sys.exit(serve(config))


if __name__ == "__main__":
    main()
