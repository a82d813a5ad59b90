"""``python -m agent`` is ``nhop-agent``."""

from agent.cli import main

if __name__ == "__main__":
    main()
