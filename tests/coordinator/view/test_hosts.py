"""The table of hosts as a user sees it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from coordinator.hosts import Inventory
from coordinator.preflight import Findings, HostRow, Preflight
from coordinator.view.hosts import MOST_ROWS, show_hosts

FOUND = Inventory(
    slots=4, gpus=2, incarnation="i", quarantined=("GPU a: stuck",), nhop_version="0.2.0",
    tensorflow_version="2.21.0", python_version="3.11.7", cpu_cores=8, free_disk=50 << 30,
    clock_offset=0.0123, task_address="10.0.0.1", ports=(20000, 29999),
)  # fmt: skip
LONG = "ec2-203-0-113-25.eu-central-1.compute.amazonaws.com:7001"
WHY = "nothing answers at that address; is the host up, and its port not filtered?"


def shown(*rows, findings=Findings(), width=80, terminal=False):  # noqa: B008  (frozen)
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    show_hosts(Preflight(rows, findings), console)
    return console.file.getvalue()


def test_a_line_for_each_host_and_one_of_titles():
    lines = shown(HostRow("a:7001", 4, FOUND), HostRow("b:7001", 4, FOUND)).splitlines()
    assert [line.split()[0] for line in lines] == ["host", "a:7001", "b:7001"]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_line_is_cut_off_or_wrapped(width, terminal):
    rows = (HostRow(LONG, 4, FOUND, ports="not by 3 of 3"), HostRow("10.0.0.7:7001", state=WHY))
    warning = "w " * 100 + "end"
    text = shown(*rows, findings=Findings(warnings=(warning,)), width=width, terminal=terminal)
    lines = text.splitlines()
    assert len(lines) == 4
    for words, line in zip(
        (("task ports", "state"), (LONG, "not by 3 of 3", "ready"), (WHY,), ("end",)), lines, strict=True
    ):
        assert all(word in line for word in words)


def test_what_is_said_of_a_host():
    (_, line) = shown(HostRow("a:7001", 4, FOUND)).splitlines()
    assert line.split() == [
        *("a:7001", "0.2.0", "2.21.0", "3.11.7", "8", "4", "2", "(1", "not", "leased)"),
        *("50.0", "GB", "+12", "ms", "20000-29999", "ready"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"free_disk": 300 << 20}, "300 MB"),
        ({"clock_offset": -12.4}, "-12 s"),
        ({"clock_offset": -9.9}, "-9900 ms"),
        ({"nhop_version": ""}, "?"),
        ({"ports": (0, 0)}, "?"),
    ],
)
def test_units_and_what_is_not_known(change, words):
    assert words in shown(HostRow("a", 4, replace(FOUND, **change)))


def test_a_host_that_does_not_answer_says_why():
    (_, line) = shown(HostRow("a:7001", state=WHY)).splitlines()
    assert line.endswith(WHY)
    assert line.split()[1:10] == ["-"] * 9


def test_markup_in_names_and_reasons_is_text():
    text = shown(HostRow("[red]a", state="[bold]why"))
    assert "[red]a" in text
    assert "[bold]why" in text


def test_very_many_hosts_are_cut_short():
    lines = shown(*(HostRow(f"h{n}", 4, FOUND) for n in range(MOST_ROWS + 7))).splitlines()
    assert len(lines) == MOST_ROWS + 2
    assert lines[-1].strip() == "and 7 more"


def test_warnings_follow_the_table():
    text = shown(HostRow("a", 4, FOUND), findings=Findings(("a problem",), ("its clock is off",)))
    assert text.splitlines()[-1] == "warning: its clock is off"
    assert "a problem" not in text  # it is the error's
