"""One run of the command: the study or the service, its signals, and what the terminal shows."""

from __future__ import annotations

import asyncio
import functools
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
from coordinator.hosts import AgentAddress, HostPolicy
from coordinator.kept_logs import LOGS_FOLDER
from coordinator.launch import launch
from coordinator.naming import new_study_id
from coordinator.remote import Place
from coordinator.runtime import run_loop
from coordinator.sockets import remove_private_folders
from coordinator.view import watch
from coordinator.view.final import show_result
from coordinator.view.hosts import show_hosts

INTERRUPTED = 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class QuietConsole(Console):
    """A console that falls silent when its reader goes away, instead of ending the program."""

    def on_broken_pipe(self) -> None:
        """Says nothing from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopSwitch:
    """Turns the first signal into a clean stop, and another one but SIGTERM into an end at once.

    A batch system sends SIGTERM to all processes of a job, and its script may pass it on besides: several
    are one. ``event`` is set by the first; ``on_first`` then tells the user, ``on_second`` puts the
    terminal in order before the process ends. Tasks and the private agent end by themselves when
    this process is gone. SIGHUP stops where the terminal is gone, or where there is nothing to be read
    again; otherwise it sets ``reread``, which is for the hosts file.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None], *, rereads: bool) -> None:
        self.event = asyncio.Event()
        self.reread = asyncio.Event()
        self._rereads = rereads
        self._had_terminal = _has_terminal()
        self._hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # not under nohup
        self._on_first = on_first
        self._on_second = on_second

    def attach(self) -> None:
        """Takes over the signals of the running loop."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        if self._rereads or self._hangs_up:
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _hung_up(self) -> None:
        gone = self._had_terminal and not _has_terminal()
        if self._rereads and not (gone and self._hangs_up):
            self.reread.set()
        elif self._hangs_up:
            self._signalled(signal.SIGHUP)

    def _signalled(self, number: signal.Signals) -> None:
        if not self.event.is_set():
            self.event.set()
            self._on_first()
        elif number is not signal.SIGTERM:
            self._on_second()
            remove_private_folders()
            os._exit(INTERRUPTED)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


Agents = Sequence[AgentAddress] | None


def run_session(config: StudyConfig, agents: Agents, policy: HostPolicy, output: str | Path | None) -> int:
    """Runs a study and shows it; returns the exit status. Raises NhopError as ``launch`` does."""
    return run_loop(_run(config, agents, policy, output))


def plan_session(config: StudyConfig, agents: Agents, policy: HostPolicy, output: str | Path | None) -> None:
    """Checks everything and shows what would run. Raises NhopError."""
    from coordinator.plan import show_plan

    show = functools.partial(show_hosts, console=QuietConsole())
    run_loop(show_plan(config, agents, output, policy, show))


def serve_session(address: str, agents: Agents, policy: HostPolicy, runs: Path) -> None:
    """Serves studies until a signal; ``runs`` holds a folder for each. Raises NhopError."""
    run_loop(_serve(address, agents, policy, runs))


async def _run(config: StudyConfig, agents: Agents, policy: HostPolicy, output: str | Path | None) -> int:
    study_id = new_study_id()
    console = QuietConsole()
    logs = Place.of(output, config.keys.train_log_dir, study_id).folder / LOGS_FOLDER
    with ExitStack() as stack:
        show = stack.enter_context(watch(config.to_spec(study_id), console, logs))

        def observe(update: Update) -> None:
            try:
                show(update)
            except OSError:  # the terminal is gone: the study goes on without it
                console.quiet = True

        switch = StopSwitch(
            on_first=lambda: observe(Notice("stopping; another Ctrl-C ends at once", warning=True)),
            on_second=stack.close,
            rereads=agents is not None,
        )
        switch.attach()
        result = await launch(
            config,
            study_id=study_id,
            output=output,
            agents=agents,
            observer=observe,
            stop=switch.event,
            policy=policy,
            reread=switch.reread,
            show=functools.partial(show_hosts, console=console),
        )
    show_result(result.study, result.directory, console, result.url)
    if result.study.state is StudyState.FAILED:
        problem = f"; {result.copy_problem}" if result.copy_problem else ""
        raise StudyFailedError(f"the study failed: {result.study.reason}{problem}")
    if result.copy_problem:
        raise StudyFailedError(result.copy_problem)
    return 0 if result.study.state is StudyState.COMPLETED else INTERRUPTED


async def _serve(address: str, agents: Agents, policy: HostPolicy, runs: Path) -> None:
    from coordinator.service import serve

    console = QuietConsole(highlight=False, markup=False, soft_wrap=True)
    switch = StopSwitch(
        on_first=lambda: console.print("stopping; another Ctrl-C ends at once"),
        on_second=lambda: None,
        rereads=agents is not None,
    )
    switch.attach()
    serving: Coroutine[Any, Any, None] = serve(
        address,
        agents=agents,
        runs_directory=runs,
        stop=switch.event,
        announce=console.print,
        policy=policy,
        reread=switch.reread,
        show=functools.partial(show_hosts, console=console),
    )
    await serving
