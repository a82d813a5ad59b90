from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nhop.security.identity import Identity, Role

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?", fullmatch=True)
URI = re.compile(r"nhop://(coordinator|agent|client)/[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?")


@given(st.sampled_from(Role), NAMES)
def test_an_identity_is_found_by_its_uri(role: Role, name: str) -> None:
    identity = Identity(role, name)
    assert Identity.find(["host", "10.0.0.1", identity.uri]) == identity


@given(st.text())
@example("nhop://coordinator/alice\n")
@example("nhop://coordinator/alice\0.example")
@example("NHOP://coordinator/alice")
@example("nhop://Coordinator/alice")
@example("nhop://coordinator/alice/")
@example("nhop://coordinator/../agent/alice")
@example("nhop://coordinator//alice")
@example("nhop://coordinator/alice?role=agent")
@example("nhop://coordinator/")
@example("nhop://root/alice")
@example(" nhop://coordinator/alice")
@example(f"nhop://coordinator/{'a' * 129}")
@example("nhop://coordinator/ålice")
def test_nothing_else_is_one(text: str) -> None:
    assert (Identity.find([text]) is not None) == (URI.fullmatch(text) is not None)


@pytest.mark.parametrize("second", ["nhop://client/eve", "nhop://coordinator/alice", "nhop://root/eve"])
def test_two_are_none(second: str) -> None:
    assert Identity.find(["nhop://coordinator/alice", second]) is None


def test_none_is_none() -> None:
    assert Identity.find([]) is None
