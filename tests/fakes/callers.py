"""Programs that call a coordinator or an agent from a host of their own.

study ADDRESS FOLDER JSON             submits a study, prints its id, waits for its end, prints its state
list ADDRESS FOLDER                   lists studies; prints in one line what is wrong
trespass FOLDER STUDY ADDRESS ...     tries to read and to stop a study on agents; prints the answers (JSON)
serial ADDRESS FOLDER                 prints the serial number of the certificate that a connection is shown
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def study(address: str, folder: str, config: str) -> None:
    import nhop

    with nhop.Client(address, tls=folder) as client:
        study_id = client.submit(json.loads(config)).study_id
        print(study_id, flush=True)
        for _ in client.watch(study_id):
            pass
        print(client.get(study_id).state.value, flush=True)


def list_studies(address: str, folder: str) -> None:
    import nhop
    from coordinator.errors import NhopError

    try:
        with nhop.Client(address, tls=folder) as client:
            print(len(client.list()))
    except NhopError as error:
        sys.exit(str(error))


def trespass(folder: str, study_id: str, *addresses: str) -> None:
    print(json.dumps([_tried(folder, study_id, address) for address in addresses]))


def _tried(folder: str, study_id: str, address: str) -> dict[str, str]:
    import grpc

    from nhop.v1 import agent_pb2, agent_pb2_grpc, types_pb2

    authority, key, certificate = ((Path(folder) / n).read_bytes() for n in ("ca.crt", "tls.key", "tls.crt"))
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    attempt = types_pb2.AttemptId(study_id=study_id, trial=1, attempt=1)
    chief = types_pb2.TaskId(role=types_pb2.TASK_ROLE_WORKER, index=0)
    subscribe = agent_pb2.StreamEventsRequest(subscribe=agent_pb2.Subscribe(study_id=study_id))

    def code(call: Callable[[], object]) -> str:
        try:
            call()
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found.name
        return "OK"

    with grpc.secure_channel(address, credentials) as channel:
        stub: Any = agent_pb2_grpc.AgentServiceStub(channel)
        stop = agent_pb2.StopAttemptRequest(attempt=attempt, reason=agent_pb2.STOP_REASON_STUDY_STOPPED)
        log = agent_pb2.ReadLogRequest(attempt=attempt, task=chief)
        return {
            "inventory": code(lambda: stub.GetInventory(agent_pb2.GetInventoryRequest(), timeout=10)),
            "stop": code(lambda: stub.StopAttempt(stop, timeout=10)),
            "log": code(lambda: list(stub.ReadLog(log, timeout=10))),
            "events": code(lambda: list(stub.StreamEvents(iter([subscribe]), timeout=10))),
        }


def serial(address: str, folder: str) -> None:
    from cryptography import x509

    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        shown = context.wrap_socket(plain, server_hostname=host).getpeercert(binary_form=True)
    assert shown is not None
    print(x509.load_der_x509_certificate(shown).serial_number)


if __name__ == "__main__":
    {"study": study, "list": list_studies, "trespass": trespass, "serial": serial}[sys.argv[1]](*sys.argv[2:])
