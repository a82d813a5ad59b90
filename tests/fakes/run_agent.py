"""``nhop-agent`` with a fake zygote: a process of its own for tests, as a user's would be.

Prints what ``nhop-agent`` prints. Takes the values of AgentConfig as one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from agent.cli import serve
from agent.config import AgentConfig, ListenAddress

ZYGOTE = Path(__file__).with_name("zygote.py")


def main() -> None:
    values = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    values["listen"] = ListenAddress.parse(values["listen"])
    values["state_dir"] = Path(values["state_dir"])
    extra = values.pop("zygote_arguments", [])
    config = AgentConfig(**values, zygote_command=(sys.executable, str(ZYGOTE), *extra))
    sys.exit(serve(config))


if __name__ == "__main__":
    main()
