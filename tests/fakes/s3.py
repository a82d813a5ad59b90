"""An S3 server of the tests' own."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from tests.fakes.aws import AwsServer


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


class S3(AwsServer):
    """A server with one empty bucket; ``requests`` is what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = _Requests()
        logging.getLogger("werkzeug").addHandler(self.requests)
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

    def stop(self) -> None:
        """Ends the server; more than once is fine."""
        super().stop()
        logging.getLogger("werkzeug").removeHandler(self.requests)


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server that is stopped whatever happens."""
    server = S3()
    try:
        yield server
    finally:
        server.stop()
