"""The table of hosts before the first trial."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.hosts import Inventory
from coordinator.preflight import HostRow, Preflight

MOST_ROWS = 60
WIDEST = 1000


def show_hosts(preflight: Preflight, console: Console) -> None:
    """Prints one line for each host, then the warnings; problems are the error's."""
    table = Table(box=None, pad_edge=False)
    for title in ("host", "nhop", "TensorFlow", "Python"):
        table.add_column(title, no_wrap=True)
    for title in ("cores", "slots", "GPUs", "disk free", "clock"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("task ports", "state"):
        table.add_column(title, no_wrap=True)
    for row in preflight.rows[:MOST_ROWS]:
        table.add_row(*_cells(row))
    if len(preflight.rows) > MOST_ROWS:
        table.add_row(f"and {len(preflight.rows) - MOST_ROWS} more")
    # As wide as it is: cut off or wrapped within their columns, addresses are of no use.
    wide = Console(width=WIDEST, force_terminal=console.is_terminal, highlight=False)
    with wide.capture() as captured:
        wide.print(table)
    console.print(Text.from_ansi(captured.get().rstrip("\n")), soft_wrap=True)
    for warning in preflight.findings.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _cells(row: HostRow) -> list[Text]:
    found = row.inventory
    if found is None:
        return [Text(row.name), *[Text("-")] * 9, Text(row.state, style="red")]
    return [
        Text(row.name),
        Text(found.nhop_version or "?"),
        Text(found.tensorflow_version or "?"),
        Text(found.python_version or "?"),
        Text(str(found.cpu_cores)),
        Text(str(row.slots)),
        Text(str(found.gpus) + (f" ({len(found.quarantined)} not leased)" if found.quarantined else "")),
        Text(_bytes(found.free_disk)),
        Text(_offset(found)),
        Text(_ports(row, found), style="red" if row.ports.startswith("not") else ""),
        Text(row.state, style="green" if row.state == "ready" else "yellow"),
    ]


def _bytes(number: int) -> str:
    return f"{number / (1 << 30):.1f} GB" if number >= 1 << 30 else f"{number >> 20} MB"


def _offset(found: Inventory) -> str:
    milliseconds = round(1000 * found.clock_offset)
    return f"{milliseconds:+d} ms" if abs(milliseconds) < 10_000 else f"{found.clock_offset:+.0f} s"


def _ports(row: HostRow, found: Inventory) -> str:
    return row.ports or (f"{found.ports[0]}-{found.ports[1]}" if found.ports[1] else "?")
