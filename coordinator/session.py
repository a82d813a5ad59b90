"""One run of the command: the study or the service, its signals, and what the terminal shows."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from coordinator.config import StudyConfig
from coordinator.domain import Notice, StudyState, Update
from coordinator.errors import StudyFailedError
from coordinator.hosts import AgentAddress
from coordinator.launch import launch
from coordinator.naming import new_study_id
from coordinator.runtime import run_loop
from coordinator.view import watch
from coordinator.view.final import show_result

INTERRUPTED = 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class QuietConsole(Console):
    """A console that falls silent when its reader goes away, instead of ending the program."""

    def on_broken_pipe(self) -> None:
        """Says nothing from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopSwitch:
    """Turns the first signal into a clean stop, and the second into an end at once.

    ``event`` is set by the first; ``on_first`` then tells the user, ``on_second`` puts the
    terminal in order before the process ends. Tasks and the private agent end by themselves when
    this process is gone.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None]) -> None:
        self.event = asyncio.Event()
        self._on_first = on_first
        self._on_second = on_second

    def attach(self) -> None:
        """Takes over the signals of the running loop."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.event.is_set():
            self._on_second()
            os._exit(INTERRUPTED)
        self.event.set()
        self._on_first()


def run_session(config: StudyConfig, agents: Sequence[AgentAddress] | None, output: Path | None) -> int:
    """Runs a study and shows it; returns the exit status. Raises NhopError as ``launch`` does."""
    return run_loop(_run(config, agents, output))


def serve_session(address: str, agents: Sequence[AgentAddress] | None, runs: Path) -> None:
    """Serves studies until a signal; ``runs`` holds a folder for each. Raises NhopError."""
    run_loop(_serve(address, agents, runs))


async def _run(config: StudyConfig, agents: Sequence[AgentAddress] | None, output: Path | None) -> int:
    study_id = new_study_id()
    console = QuietConsole()
    with ExitStack() as stack:
        show = stack.enter_context(watch(config.to_spec(study_id), console))

        def observe(update: Update) -> None:
            try:
                show(update)
            except OSError:  # the terminal is gone: the study goes on without it
                console.quiet = True

        switch = StopSwitch(
            on_first=lambda: observe(Notice("stopping; once more ends at once", warning=True)),
            on_second=stack.close,
        )
        switch.attach()
        result = await launch(
            config,
            study_id=study_id,
            output=output,
            agents=agents,
            observer=observe,
            stop=switch.event,
        )
    show_result(result.study, result.directory, console)
    if result.study.state is StudyState.FAILED:
        raise StudyFailedError(f"the study failed: {result.study.reason}")
    return 0 if result.study.state is StudyState.COMPLETED else INTERRUPTED


async def _serve(address: str, agents: Sequence[AgentAddress] | None, runs: Path) -> None:
    from coordinator.service import serve

    console = QuietConsole(highlight=False, markup=False, soft_wrap=True)
    switch = StopSwitch(
        on_first=lambda: console.print("stopping; once more ends at once"), on_second=lambda: None
    )
    switch.attach()
    serving: Coroutine[Any, Any, None] = serve(
        address, agents=agents, runs_directory=runs, stop=switch.event, announce=console.print
    )
    await serving
