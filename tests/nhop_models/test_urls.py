from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from nhop_models import urls
from nhop_models.urls import Trouble


@pytest.mark.parametrize("text", ["s3://bucket/key.csv", "hdfs://host:8020/x", "file:///x", "memory://x"])
def test_urls(text):
    assert urls.is_url(text)


@pytest.mark.parametrize("text", ["key.csv", "/data/s3://x", "C:/data", "s3:/bucket/key", "://x", ""])
def test_paths(text):
    assert not urls.is_url(text)


@pytest.mark.parametrize(
    ("url", "name", "suffix"),
    [
        ("s3://bucket/folder/Key.CSV", "Key.CSV", ".csv"),
        ("s3://bucket/folder/", "folder", ""),
        ("https://host/table.npz?version=1.2", "table.npz", ".npz"),
        ("zip://in.csv::s3://bucket/archive.zip", "in.csv", ".csv"),
    ],
)
def test_the_file_that_a_url_names(url, name, suffix):
    assert urls.file_name(url) == name
    assert urls.suffix(url) == suffix


@pytest.mark.parametrize(
    "url", ["s3://bucket/key.csv", "memory://x", "file:///x", "zip://a.csv::s3://b/c.zip"]
)
def test_what_can_be_opened(url):
    assert urls.why_not_opened(url) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nothing://bucket/key", "the protocol nothing:// is not known"),
        ("zip://a.csv::nothing://b/c.zip", "the protocol nothing:// is not known"),
        ("s3://me:secret@bucket/key", "a password does not belong in a URL"),
        ("s3://", "says only the protocol"),
    ],
)
def test_what_cannot_be_opened(url, words):
    assert words in (urls.why_not_opened(url) or "")


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gs"), ("gcs", "gs"), ("hdfs", "hdfs")])
def test_a_missing_package_names_the_extra(monkeypatch, protocol, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"pip install 'nhop[{extra}]'" in (urls.why_not_opened(f"{protocol}://x/y") or "")


class EndpointConnectionError(Exception):
    """Named as botocore's."""


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (FileNotFoundError("no"), Trouble.MISSING),
        (PermissionError("no"), Trouble.DENIED),
        (EndpointConnectionError("no"), Trouble.UNREACHABLE),
        (socket.gaierror(-2, "no"), Trouble.UNREACHABLE),
        (TimeoutError("no"), Trouble.PASSING),
        (OSError(16, "SlowDown: reduce your request rate"), Trouble.PASSING),
        (ValueError("no"), Trouble.OTHER),
    ],
)
def test_what_an_error_means(error, trouble):
    assert urls.diagnose(error).trouble is trouble


def test_the_cause_of_an_error_counts():
    error = OSError("no")
    error.__cause__ = FileNotFoundError("no")
    assert urls.diagnose(error).trouble is Trouble.MISSING


def test_fsspec_is_imported_only_where_there_is_a_url():
    """It is slow for a command, and has threads, which do not go with the zygote's forks."""
    program = (
        "import sys, coordinator.cli, coordinator.session, nhop_models.custom, nhop_models.fetching; "
        "sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
