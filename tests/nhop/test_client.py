"""What a client makes of a file before it sends it."""

from __future__ import annotations

import pytest

import nhop
from nhop.client import _read


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:7000", "127.0.0.1:99999", "unix:"])
def test_an_address_that_is_none_is_said_at_once(address):
    with pytest.raises(nhop.UsageError, match="the address of a coordinator"):
        nhop.Client(address)


@pytest.mark.parametrize(("address", "port"), [("127.0.0.1", 7001), ("127.0.0.1:7", 7)])
def test_an_address_without_a_port_is_where_serve_without_one_listens(address, port):
    with nhop.Client(address, timeout=5) as client:
        assert client._address == f"127.0.0.1:{port}"


@pytest.mark.parametrize("location", ["s3://bucket/table.csv", "/data/table.csv"])
def test_a_url_or_an_absolute_path_is_sent_as_it_is(tmp_path, location):
    (tmp_path / "study.yaml").write_text(f"load_data_dir: {location}\n")
    assert _read(tmp_path / "study.yaml")["load_data_dir"] == location
