"""``python -m agent`` is ``nhop-agent``: what both begin with."""

import sys

from nhop._process import loading


def main() -> None:
    """Runs the command."""
    with loading():
        from agent.words import run
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
