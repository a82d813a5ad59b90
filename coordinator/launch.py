"""From a configuration to a finished study with its result files: one path for all who run one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coordinator.bundles import Bundles, pack
from coordinator.config import StudyConfig
from coordinator.delivery import QUIET
from coordinator.directory import StudyDirectory
from coordinator.domain import Notice, Study, Update
from coordinator.errors import NhopError, StudyFailedError
from coordinator.hosts import AgentAddress, HostPolicy
from coordinator.placement import check_cluster
from coordinator.preflight import Preflight
from coordinator.remote import Place, RemoteFolder
from coordinator.report import write_results
from coordinator.report.results import CONFIG_FILE
from coordinator.runtime import StudyResult, run_study
from coordinator.single_study import SingleStudy
from coordinator.waiting import unless_stopped
from nhop_models.contract import write_atomically


async def launch(
    config: StudyConfig,
    *,
    study_id: str,
    output: str | Path | None,
    agents: Sequence[AgentAddress] | None,
    observer: Callable[[Update], None],
    stop: asyncio.Event,
    policy: HostPolicy | None = None,
    reread: asyncio.Event | None = None,
    show: Callable[[Preflight], None] | None = None,
) -> StudyResult:
    """Runs a study to its end, or until ``stop`` is set, and writes its results.

    ``output`` is a folder or a URL; None: one named after the study within ``train_log_dir``.
    ``agents`` None: a private agent on this machine; ``policy``, ``reread`` and ``show`` as for
    ``run_study``. Raises UsageError where the folder or the URL cannot be used, or code or data cannot
    be packed for the hosts, HostsError where the hosts cannot be used, StudyFailedError where the results
    cannot be written here. What then keeps them from their URL is in the result.
    """
    spec = config.to_spec(study_id)
    slots = config.keys.slots
    if agents is None and slots is not None:
        check_cluster({"this machine": slots}, spec.cluster)
    config_yaml = config.to_yaml()
    place = Place.of(output, config.keys.train_log_dir, study_id)
    remote = RemoteFolder(place.url, study_id) if place.url is not None else None
    # None where it was stopped meanwhile: the study then does not begin.
    packing = Notice("packing code and data for the hosts")
    telling = asyncio.get_running_loop().call_later(QUIET, observer, packing)
    try:
        bundles = await unless_stopped(pack(config.sources, place.folder), stop) or Bundles()
    finally:
        telling.cancel()
    spec = bundles.put_into(spec)
    with bundles, StudyDirectory.create(place.folder) as directory:
        begun = False
        if remote is not None and await unless_stopped(remote.claim(config_yaml), stop) is None:
            remote = None  # stopped before the study begins: nothing to copy there
        single = SingleStudy(config_yaml, directory, observer)

        def observe(update: Update) -> None:
            nonlocal begun
            if not begun and isinstance(update, Study):
                begun = True
                with _writing(directory.path):
                    write_atomically(directory.path / CONFIG_FILE, config_yaml)
            observer(update)
            single.observe(update)

        for note in bundles.notes:
            observe(Notice(note, warning=True))
        try:
            result = await run_study(
                spec,
                directory=directory,
                agents=agents,
                observer=observe,
                stop=stop,
                slots=slots,
                policy=policy,
                reread=reread,
                show=show,
                begun=single.begin,
                bundles=bundles,
            )
            with _writing(directory.path, result.study.reason):
                write_results(directory.path, result.study, result.trials, config_yaml, spec)
            single.ended(result)
        except NhopError:
            if remote is not None and not begun:
                await remote.release()
            raise
        finally:
            await single.close()
        return result if remote is None else await _copy(remote, result, observer)


async def _copy(remote: RemoteFolder, result: StudyResult, observer: Callable[[Update], None]) -> StudyResult:
    observer(Notice(f"copying the results to {remote.url}"))
    try:
        await remote.copy(result.directory)
    except StudyFailedError as error:
        return replace(result, copy_problem=str(error))
    return replace(result, url=remote.url)


@contextlib.contextmanager
def _writing(folder: Path, reason: str = "") -> Iterator[None]:
    """Turns what goes wrong with a file into a StudyFailedError, after the ``reason`` that is known."""
    try:
        yield
    except OSError as error:
        why = f"{folder}: the results cannot be written ({error.strerror or error})"
        raise StudyFailedError(f"{reason}; {why}" if reason else why) from error
