"""From a configuration to a finished study with its result files: one path for all who run one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from coordinator.config import StudyConfig
from coordinator.directory import StudyDirectory
from coordinator.domain import Study, Update
from coordinator.errors import StudyFailedError
from coordinator.hosts import AgentAddress
from coordinator.report import write_results
from coordinator.report.results import CONFIG_FILE
from coordinator.runtime import StudyResult, check_cluster, run_study
from nhop_models.contract import write_atomically


async def launch(
    config: StudyConfig,
    *,
    study_id: str,
    output: Path | None,
    agents: Sequence[AgentAddress] | None,
    observer: Callable[[Update], None],
    stop: asyncio.Event,
) -> StudyResult:
    """Runs a study to its end, or until ``stop`` is set, and writes its results.

    ``output`` None: a folder named after the study within ``train_log_dir``. ``agents`` None: a
    private agent on this machine. Raises UsageError where the folder cannot be used and
    HostsError where the hosts cannot, StudyFailedError where the results cannot be written.
    """
    spec = config.to_spec(study_id)
    slots = config.keys.slots
    if agents is None and slots is not None:
        check_cluster({"this machine": slots}, spec.cluster)
    config_yaml = config.to_yaml()
    folder = output if output is not None else Path(config.keys.train_log_dir) / study_id
    with StudyDirectory.create(folder) as directory:
        begun = False

        def observe(update: Update) -> None:
            nonlocal begun
            if not begun and isinstance(update, Study):
                begun = True
                with _writing(directory.path):
                    write_atomically(directory.path / CONFIG_FILE, config_yaml)
            observer(update)

        result = await run_study(
            spec, directory=directory, agents=agents, observer=observe, stop=stop, slots=slots
        )
        with _writing(directory.path, result.study.reason):
            write_results(directory.path, result.study, result.trials, config_yaml, spec)
        return result


@contextlib.contextmanager
def _writing(folder: Path, reason: str = "") -> Iterator[None]:
    """Turns what goes wrong with a file into a StudyFailedError, after the ``reason`` that is known."""
    try:
        yield
    except OSError as error:
        why = f"{folder}: the results cannot be written ({error.strerror or error})"
        raise StudyFailedError(f"{reason}; {why}" if reason else why) from error
