"""What the commands begin with."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

COMMANDS = {"nhop-coordinator": "coordinator", "nhop-agent": "agent"}


@pytest.mark.parametrize(("command", "package"), COMMANDS.items())
def test_ctrl_c_while_modules_are_loaded_shows_no_traceback(command, package):
    (entry,) = entry_points(group="console_scripts", name=command)
    assert entry.value == f"{package}.__main__:main"
    program = (
        "import signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == '{package}.cli': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        f"from {package}.__main__ import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


@pytest.mark.parametrize("package", COMMANDS.values())
def test_a_module_is_the_command(package):
    run = subprocess.run(
        [sys.executable, "-m", package, "--help"], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0
    assert "Usage:" in run.stdout
