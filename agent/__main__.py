"""``python -m agent`` is ``nhop-agent``: what both begin with."""

import sys

from nhop._process import loading


def main() -> None:
    """Runs the command."""
    with loading():
        from agent.cli import main as command
        from agent.words import WORDS, run_word
    if sys.argv[1:] and sys.argv[1] in WORDS:
        run_word(sys.argv[1], sys.argv[2:])
    command()


if __name__ == "__main__":
    main()
