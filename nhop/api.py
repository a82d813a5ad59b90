"""``nhop.run_study``: a study from a Python program."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coordinator.config import StudyConfig, load
from coordinator.domain import StudyState, Update
from coordinator.errors import StudyFailedError, UsageError
from coordinator.host_sources import HostsFile, parse_source
from coordinator.hosts import AgentAddress, HostPolicy, parse_hosts
from coordinator.kept_logs import LOGS_FOLDER
from coordinator.launch import launch
from coordinator.naming import new_study_id
from coordinator.patience import check_lost
from coordinator.preflight import Preflight
from coordinator.remote import Place
from coordinator.runtime import StudyResult, run_loop
from nhop.security.client import Security
from nhop.security.errors import CertificateError
from nhop.security.identity import Role


def run_study(
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    hosts: str | Path | Iterable[str] | None = None,
    output: str | Path | None = None,
    show: bool = False,
    insecure: bool = False,
    tls: str | Path | None = None,
    min_hosts: int | None = None,
    wait_hosts: float = 60.0,
    host_limit: float = 90.0,
) -> StudyResult:
    """Runs a study to its end and returns its state and trials.

    ``config`` is a mapping of configuration keys, the path of a YAML file, or None for the default
    study. ``hosts`` is the path of a hosts file or its lines, or ``"ec2:TAG=VALUE"`` or ``"slurm:"`` as for
    the command, None for this machine alone;
    ``output`` the folder for the results, by default one named after the study, or a URL such as
    ``s3://bucket/prefix`` to which they are copied at the end; ``show`` prints the hosts and what
    happens, as the command does. ``tls`` (a folder), ``insecure``, ``min_hosts``, ``wait_hosts`` and
    ``host_limit`` (seconds) are for hosts, as the options of the command are. Works inside a running event
    loop too (in Jupyter).

    KeyboardInterrupt tears the study down before it is passed on. Raises ConfigError, HostsError,
    UsageError, and StudyFailedError where the study fails, or its results cannot be copied.
    """
    if hosts is None and (insecure or tls is not None):
        raise UsageError(f"--{'insecure' if insecure else 'tls'} is for --hosts")
    security = Security() if hosts is None else _security(tls, insecure=insecure)
    source = None
    agents: tuple[AgentAddress, ...] | None = None
    if isinstance(hosts, str | Path):
        source = parse_source(hosts) if isinstance(hosts, str) else HostsFile(hosts)
        agents = source.read(refusal=security.refusal)
    elif hosts is not None:
        agents = parse_hosts("\n".join(hosts), "hosts", refusal=security.refusal)
    policy = HostPolicy(wait_hosts, min_hosts, host_limit, source, security)
    policy.check(agents)
    loaded = load(Path(config) if isinstance(config, str) else config, remote=agents is not None)
    if agents is not None:
        check_lost(policy.lost, loaded.to_spec("").limits)
    result = _Worker(loaded, agents, policy, output, show=show).run()
    if result.study.state is StudyState.FAILED:
        raise StudyFailedError(
            f"the study failed: {result.study.reason}; its files are in {result.directory}"
        )
    if result.copy_problem:
        raise StudyFailedError(result.copy_problem)
    return result


def _security(folder: str | Path | None, *, insecure: bool) -> Security:
    try:
        return Security.find(None if folder is None else Path(folder), Role.COORDINATOR, insecure=insecure)
    except CertificateError as error:
        raise UsageError(f"tls: {error}") from error


class _View(NamedTuple):
    """What is done with all that happens, and with what is found of the hosts."""

    observer: Callable[[Update], None]
    show_hosts: Callable[[Preflight], None] | None


class _Worker:
    """Runs the study in a thread and loop of its own, so that it works whatever the caller's thread does."""

    def __init__(
        self,
        config: StudyConfig,
        agents: tuple[AgentAddress, ...] | None,
        policy: HostPolicy,
        output: str | Path | None,
        *,
        show: bool,
    ) -> None:
        self._config = config
        self._agents = agents
        self._policy = policy
        self._output = output
        self._show = show
        self._begun = threading.Event()
        self._done = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._result: StudyResult | None = None
        self._error: BaseException | None = None

    def run(self) -> StudyResult:
        """Waits for the study; an exception in the waiting thread stops it first."""
        thread = threading.Thread(target=self._work, name="nhop-study")
        thread.start()
        try:
            with _ctrl_c_raises():
                # Not join: interrupted, that takes the thread for ended (Python 3.11).
                self._done.wait()
        except BaseException:
            self._begun.wait()
            if self._loop is not None and self._stop is not None:
                with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                    self._loop.call_soon_threadsafe(self._stop.set)
            self._done.wait()
            raise
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _work(self) -> None:
        try:
            self._result = run_loop(self._main())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        finally:
            self._begun.set()
            self._done.set()

    async def _main(self) -> StudyResult:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._begun.set()
        study_id = new_study_id()
        place = Place.of(self._output, self._config.keys.train_log_dir, study_id)
        logs = place.folder / LOGS_FOLDER
        with _view(self._config, study_id, logs, show=self._show) as view:
            return await launch(
                self._config,
                study_id=study_id,
                output=self._output,
                agents=self._agents,
                observer=view.observer,
                stop=self._stop,
                policy=self._policy,
                show=view.show_hosts,
            )


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Lets Ctrl-C end a wait in the main thread: a running asyncio.run would only cancel its own task."""
    if threading.current_thread() is not threading.main_thread() or not _loop_runs():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _view(config: StudyConfig, study_id: str, logs: Path, *, show: bool) -> Iterator[_View]:
    if not show:
        yield _View(lambda update: None, None)
        return
    from rich.console import Console

    from coordinator.view import watch
    from coordinator.view.hosts import show_hosts

    console = Console()
    with watch(config.to_spec(study_id), console, logs) as observer:
        yield _View(observer, functools.partial(show_hosts, console=console))
