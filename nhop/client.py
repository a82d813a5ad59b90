"""``nhop.Client``: speaks to a coordinator that serves studies (`nhop-coordinator --serve ADDRESS`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.convert_study import StudyStatus, study_from_pb, trial_from_pb, update_from_pb
from coordinator.domain import Notice, Report, Trial
from coordinator.errors import ConfigError, HostsError, NhopError, Problem, UsageError
from coordinator.hosts import parse_address
from nhop.security.client import Security
from nhop.security.errors import CertificateError
from nhop.security.identity import Role
from nhop.security.refusals import tls_problem
from nhop.v1 import study_pb2, study_pb2_grpc
from nhop_models.urls import is_url


class CoordinatorError(NhopError):
    """The coordinator refused or failed; the message says why."""


class UnreachableError(CoordinatorError):
    """No coordinator answers at the address."""


class StudyNotFoundError(CoordinatorError):
    """The coordinator has no such study, or the study no completed trial."""


class StudyExistsError(CoordinatorError):
    """The study id is taken."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """A piece of the log of an attempt (from 1) of a trial; ``host`` is empty where it is not known."""

    attempt: int
    host: str
    data: bytes


class Client:
    """A connection to one coordinator; a context manager. ``timeout`` is in seconds, of each call.

    ``address`` is written as for ``--serve``: host[:port] or unix:/path. ``tls`` is the folder of a client's
    certificate; by default ~/.config/nhop/certs/client is used for addresses off loopback, unless
    ``insecure``. Raises UsageError where the address or the certificate cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 30.0,
        tls: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        try:
            security = Security.find(None if tls is None else Path(tls), Role.CLIENT, insecure=insecure)
            self._address = parse_address(address, refusal=security.refusal)
        except CertificateError as error:
            raise UsageError(f"tls: {error}") from error
        except ValueError as error:
            raise UsageError(f"the address of a coordinator: {error}") from error
        self._timeout = timeout
        own = security.tls_for(self._address)
        self._tls = own is not None
        options = (("grpc.enable_http_proxy", 0),)
        if own is not None:
            self._channel = grpc.secure_channel(self._address, own.credentials(), options=options)
        else:
            self._channel = grpc.insecure_channel(self._address, options=options)
        self._stub = study_pb2_grpc.StudyServiceStub(self._channel)

    def close(self) -> None:
        """Ends the connection; studies go on."""
        self._channel.close()

    def submit(self, config: Mapping[str, Any] | str | Path, *, study_id: str = "") -> StudyStatus:
        """Starts a study from a mapping of keys, YAML text, or the Path of a YAML file.

        In a Path's file, ``code``, ``data``, ``load_data_dir`` and the modules beside it are looked for
        as by the command: the coordinator must see the same folders. Raises ConfigError with all
        problems of the configuration, StudyExistsError, and HostsError where the hosts could never
        hold a trial.
        """
        if isinstance(config, Path):
            try:
                config = _read(config)
            except RuntimeError as error:  # ~nobody
                raise ConfigError(str(config), [Problem("", str(error))]) from error
        text = config if isinstance(config, str) else _as_yaml(config)
        request = study_pb2.SubmitStudyRequest(study_id=study_id, yaml=text)
        with self._errors():
            return study_from_pb(self._stub.SubmitStudy(request, timeout=self._timeout).study)

    def get(self, study_id: str) -> StudyStatus:
        """The state of a study."""
        request = study_pb2.GetStudyRequest(study_id=study_id)
        with self._errors():
            return study_from_pb(self._stub.GetStudy(request, timeout=self._timeout).study)

    def list(self) -> tuple[StudyStatus, ...]:
        """All studies since the coordinator was started, oldest first."""
        with self._errors():
            response = self._stub.ListStudies(study_pb2.ListStudiesRequest(), timeout=self._timeout)
        return tuple(map(study_from_pb, response.studies))

    def watch(self, study_id: str) -> Iterator[StudyStatus | Trial | Report | Notice]:
        """What happens in a study, its state first and last; ends with the study.

        A Notice says what the user should know, such as a lost host; the newest ones of before come first.

        Raises CoordinatorError where the caller reads too slowly.
        """
        call: Any = self._stub.WatchStudy(study_pb2.WatchStudyRequest(study_id=study_id))
        try:
            with self._errors():
                for message in call:
                    yield update_from_pb(message)
        finally:
            call.cancel()

    def stop(self, study_id: str) -> StudyStatus:
        """Stops a study; returns at once. One that has ended stays as it is."""
        request = study_pb2.StopStudyRequest(study_id=study_id)
        with self._errors():
            return study_from_pb(self._stub.StopStudy(request, timeout=self._timeout).study)

    def trials(self, study_id: str) -> Iterator[Trial]:
        """All trials of a study so far, by number."""
        request = study_pb2.ListTrialsRequest(study_id=study_id)
        while True:
            with self._errors():
                response = self._stub.ListTrials(request, timeout=self._timeout)
            yield from map(trial_from_pb, response.trials)
            if not response.next_after_trial:
                return
            request.after_trial = response.next_after_trial

    def best(self, study_id: str) -> Trial:
        """The best trial so far; StudyNotFoundError where none has completed."""
        request = study_pb2.GetBestTrialRequest(study_id=study_id)
        with self._errors():
            return trial_from_pb(self._stub.GetBestTrial(request, timeout=self._timeout).trial)

    def logs(
        self, study_id: str, trial: int, task: str = "worker/0", *, follow: bool = False
    ) -> Iterator[bytes]:
        """What a task of a trial printed, in all attempts whose logs are there.

        ``follow``: goes on with what is added until the trial has ended; one that has not begun is
        waited for.
        ``study_id`` may be empty where the coordinator has one study only. Raises StudyNotFoundError where
        there is no such trial or task, or its log was not kept (those of failed tasks are), and
        CoordinatorError where its host does not answer.
        """
        for part in self.log_parts(study_id, trial, task, follow=follow):
            if part.data:
                yield part.data

    def log_parts(
        self, study_id: str, trial: int, task: str = "worker/0", *, follow: bool = False
    ) -> Iterator[LogPart]:
        """As ``logs``, with the attempt and the host of each piece; each attempt begins with an empty one."""
        request = study_pb2.ReadTaskLogRequest(study_id=study_id, trial=trial, task=task, follow=follow)
        call: Any = self._stub.ReadTaskLog(request)
        try:
            with self._errors():
                for message in call:
                    yield LogPart(message.attempt.attempt, message.host, message.data)
        finally:
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def _explain(self, error: Any) -> NhopError:
        message = error.details() or ""
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                return StudyNotFoundError(message)
            case grpc.StatusCode.ALREADY_EXISTS:
                return StudyExistsError(message)
            case grpc.StatusCode.FAILED_PRECONDITION:
                return HostsError(message)
            case grpc.StatusCode.UNAVAILABLE if _is_of_a_host(error):
                return CoordinatorError(message)
            case grpc.StatusCode.UNAVAILABLE if problem := tls_problem(message, tls=self._tls):
                return CoordinatorError(f"{self._address}: {problem}")
            case grpc.StatusCode.UNAVAILABLE:
                return UnreachableError(
                    f"no coordinator answers at {self._address} ({message}); "
                    f"start one with: nhop-coordinator --serve {self._address}"
                )
            case grpc.StatusCode.INVALID_ARGUMENT:
                return _config_error(error, message)
            case grpc.StatusCode.UNIMPLEMENTED:
                return CoordinatorError(
                    f"{self._address}: what listens there is no coordinator of this version; it is reached "
                    "at the address of its --serve"
                )
            case grpc.StatusCode.PERMISSION_DENIED:
                return CoordinatorError(f"{self._address}: it refuses this: {message}")
            case code:
                return CoordinatorError(f"{self._address}: {message} ({code.name})")


def _read(path: Path) -> Mapping[str, Any]:
    """The keys of a file, its relative paths made absolute."""
    from coordinator.config.places import holds_module
    from coordinator.config.source import read_file

    document = read_file(path)
    if document.problems:
        raise ConfigError(document.name, document.problems)
    folder, keys = path.absolute().parent, document.data
    for name in ("code", "data"):
        if isinstance(place := keys.get(name), str):
            keys[name] = str(folder / Path(place).expanduser())
    location = keys.get("load_data_dir")
    if isinstance(location, str) and not is_url(location):
        if (
            keys.get("data") is None
            and not Path(location).expanduser().is_absolute()
            and (folder / location).exists()
        ):
            keys["data"] = str(folder / location)  # it goes along to the hosts, if there are any
        keys["load_data_dir"] = str(folder / Path(location).expanduser())
    found = keys.get("python_path")
    module, colon, _ = str(keys.get("nn_model")).partition(":")
    if colon and found is None and keys.get("code") is None:
        near = [place for place in (folder, Path.cwd()) if holds_module(place, module.partition(".")[0])]
        if near:
            keys["code"] = str(near[0])
    if found is None:
        keys["python_path"] = [str(folder), str(Path.cwd())]
    elif isinstance(found, list) and all(isinstance(place, str) for place in found):
        keys["python_path"] = [str(folder / Path(place).expanduser()) for place in found]
    return keys


def _as_yaml(config: Mapping[str, Any]) -> str:
    # As text: the request's `values` would not tell 1.0 from 1, and the space would be another.
    from coordinator.config.render import as_yaml
    from coordinator.config.source import read_mapping

    document = read_mapping(config)
    if document.problems:
        raise ConfigError(document.name, document.problems)
    return as_yaml(document.data)


def _is_of_a_host(error: Any) -> bool:
    """Whether a host does not answer, rather than the coordinator."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return any(detail.Unpack(info) for detail in (status.details if status is not None else ()))


def _config_error(error: Any, message: str) -> NhopError:
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            problems = [Problem(v.field, v.description) for v in bad.field_violations]
            return ConfigError("configuration", problems)
    return CoordinatorError(message)
