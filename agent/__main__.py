"""``python -m agent`` is ``nhop-agent``: what both begin with."""

from nhop._process import loading


def main() -> None:
    """Runs the command."""
    with loading():
        from agent.cli import main as command
    command()


if __name__ == "__main__":
    main()
