"""Addresses of an agent: where it listens, and where others reach its tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig, ConfigError, ListenAddress, join_port, parse_advertised


@pytest.mark.parametrize(
    "text", ["127.0.0.1:7001", "127.0.0.2:7001", "[::1]:7001", "localhost:7001", "unix:/run/a"]
)
def test_loopback_needs_no_consent(text: str) -> None:
    ListenAddress.parse(text).check(tls=False, insecure=False)


@pytest.mark.parametrize(
    "text", ["10.0.0.7:7001", "[fd00::7]:7001", "node:7001", "0.0.0.0:7001", "[::]:7001"]
)
def test_all_else_needs_consent(text: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        ListenAddress.parse(text).check(tls=False, insecure=False)


@pytest.mark.parametrize("text", ["10.0.0.7:7001", "[fd00::7]:7001", "node:7001"])
def test_with_consent_one_address_of_the_network_may_be_named(text: str) -> None:
    ListenAddress.parse(text).check(tls=False, insecure=True)


@pytest.mark.parametrize("text", ["0.0.0.0:7001", "[::]:7001", "[::ffff:0.0.0.0]:7001", "0:7001", "0x0:7001"])
def test_every_interface_is_never_listened_on(text: str) -> None:
    with pytest.raises(ConfigError, match="every interface"):
        ListenAddress.parse(text).check(tls=False, insecure=True)


@pytest.mark.parametrize(
    "text", ["10.0.0.7]:7001", "[10.0.0.7]:7001", "[fd00::7:7001", "fd00::7:7001", ":7001"]
)
def test_brackets_are_around_ipv6_addresses_only(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        ListenAddress.parse(text)


@pytest.mark.parametrize(
    ("listen", "advertise", "host"),
    [
        ("10.0.0.7:7001", "", "10.0.0.7"),
        ("[fd00::7]:7001", "", "fd00::7"),
        ("node:7001", "", "node"),
        ("127.0.0.1:7001", "", "127.0.0.1"),
        ("[::1]:7001", "", "127.0.0.1"),
        ("unix:/run/a", "", "127.0.0.1"),
        ("10.0.0.7:7001", "public.example", "public.example"),
    ],
)
def test_where_tasks_are_reached(listen: str, advertise: str, host: str) -> None:
    config = AgentConfig(ListenAddress.parse(listen), Path("state"), advertise=advertise)
    assert config.task_host == host


@pytest.mark.parametrize(
    ("host", "joined"), [("node", "node:1"), ("10.0.0.7", "10.0.0.7:1"), ("fd00::7", "[fd00::7]:1")]
)
def test_an_ipv6_address_is_joined_in_brackets(host: str, joined: str) -> None:
    assert join_port(host, 1) == joined


@pytest.mark.parametrize(
    ("text", "host"),
    [("10.0.0.7", "10.0.0.7"), ("[fd00::7]", "fd00::7"), ("fd00::7", "fd00::7"), ("a.b", "a.b")],
)
def test_what_may_be_advertised(text: str, host: str) -> None:
    assert parse_advertised(text) == host


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0.0.0", "every interface"),
        ("::", "every interface"),
        ("node:7001", "no port"),
        ("a b", "not the name"),
        ("10.0.0.300", "not the name"),
    ],
)
def test_what_may_not_be_advertised(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_advertised(text)
