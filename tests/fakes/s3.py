"""An S3 server of the tests' own: moto's, on a free loopback port."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer


class _Requests(logging.Handler):
    """The lines that the server logs, as in ``"GET /bucket/key HTTP/1.1" 200 -``."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def count(self, method: str, path: str) -> int:
        """How often a path was asked for."""
        return sum(f"{method} {path} " in line for line in self._lines)


class S3:
    """A server with one empty bucket.

    ``environment`` is what a client needs to reach it, ``requests`` what it was asked.
    """

    def __init__(self) -> None:
        self.requests = _Requests()
        logging.getLogger("werkzeug").setLevel(logging.INFO)
        logging.getLogger("werkzeug").addHandler(self.requests)
        self._stopping = threading.Event()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self.files: Any = fsspec.filesystem(
            "s3",
            key="an-id",
            secret="a-secret",
            client_kwargs={"endpoint_url": self.endpoint},
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        self.bucket = f"bucket-{uuid.uuid4().hex}"  # moto's servers of a process have the same buckets
        self.files.mkdir(self.bucket)

    def url(self, key: str) -> str:
        """Of something in the bucket."""
        return f"s3://{self.bucket}/{key}"

    def write(self, key: str, data: bytes) -> str:
        """Puts an object there; returns its URL."""
        self.files.pipe(f"{self.bucket}/{key}", data)
        return self.url(key)

    def read(self, key: str) -> bytes:
        """An object."""
        data: bytes = self.files.cat_file(f"{self.bucket}/{key}")
        return data

    def names(self, below: str) -> list[str]:
        """What is below a prefix of the bucket, relative to it."""
        prefix = f"{self.bucket}/{below}/"
        return sorted(name.removeprefix(prefix) for name in self.files.find(prefix))

    def fall_silent(self) -> None:
        """Takes requests from now on, and does not answer them."""
        listening: Any = self._server._server
        answer = listening.app

        def wait(environment: Any, start_response: Any) -> Any:
            self._stopping.wait(300)
            return answer(environment, start_response)

        listening.app = wait

    def stop(self) -> None:
        """Ends the server; more than once is fine."""
        self._stopping.set()
        listening, self._server._server = self._server._server, None
        if listening is not None:
            listening.shutdown()
            listening.server_close()
        logging.getLogger("werkzeug").removeHandler(self.requests)


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server that is stopped whatever happens."""
    server = S3()
    try:
        yield server
    finally:
        server.stop()
