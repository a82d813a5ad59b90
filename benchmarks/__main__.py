"""Prints each figure beside its goal and, where there is one, its baseline of the same run."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from agent import share
from agent.config import usable_cores
from agent.domain import TaskLease
from benchmarks import hosts as namespaces
from benchmarks import network, original, scale, studies, tasks, tls
from benchmarks import steps as runs
from nhop_models.contract import TaskId, TaskRole

LOG_WIDTH = 150


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``baseline`` is what the original's way takes."""

    name: str
    value: str
    goal: str = ""
    baseline: str = ""


def throughput() -> Iterator[Figure]:
    rates = [studies.run_study(0, 1, 40)["trials_per_minute"] for _ in range(3)]
    alone = statistics.median(original.seconds_of_trial(trial, 1, 1) for trial in range(3))
    yield Figure(
        "standard trials a minute, one process each, two at a time",
        f"{statistics.median(rates):.0f}",
        ">= 120",
        f"{60 / alone:.0f} (1 PS + 1 worker, one after the other)",
    )


def cluster_trials() -> Iterator[Figure]:
    for ps, workers, goal in ((2, 4, "<= 4"), (1, 1, "")):
        ours, theirs = [], []
        for repetition in range(3):  # interleaved: noise of the machine meets both
            ours.append(60.0 / studies.run_study(ps, workers, 6)["trials_per_minute"])
            theirs.append(original.seconds_of_trial(repetition, ps, workers))
        yield Figure(
            f"s a standard trial, {ps} PS + {workers} worker{'s' if workers > 1 else ''}",
            f"{statistics.median(ours):.2f}",
            goal,
            f"{statistics.median(theirs):.1f}",
        )


def forks() -> Iterator[Figure]:
    seconds = tasks.fork_seconds()
    yield Figure(
        "command to first line of user code, median ms", f"{1000 * statistics.median(seconds):.0f}", "<= 30"
    )


def teardowns() -> Iterator[Figure]:
    for ps, workers in ((0, 1), (1, 1), (2, 4)):
        seconds = tasks.teardown_seconds(ps, workers)
        yield Figure(
            f"SIGUSR1 to every process gone, {ps} PS + {workers}, p50 / p95 ms",
            f"{1000 * statistics.median(seconds):.0f} / {1000 * tasks.percentile(seconds, 95):.0f}",
            "p95 <= 250",
        )


def start_up() -> Iterator[Figure]:
    first = [studies.seconds_to_first_loss() for _ in range(5)]
    yield Figure("command to first streamed loss, median s", f"{statistics.median(first):.1f}", "<= 6")
    found = [studies.import_seconds_and_megabytes() for _ in range(5)]
    yield Figure(
        "import of the coordinator, median s", f"{statistics.median(s for s, _ in found):.2f}", "<= 0.5"
    )
    yield Figure(
        "memory of the coordinator after it, MB", f"{statistics.median(m for _, m in found):.0f}", "<= 150"
    )


def threads() -> Iterator[Figure]:
    ps, workers = 2, 4
    leases = [TaskLease(TaskId(TaskRole.WORKER, i), 1, None) for i in range(workers)]
    cores = usable_cores()
    rule = share.threads(leases, cores, max(cores, workers))  # the slots of a private agent
    default, ruled = tasks.steps_per_second((0, rule), ps, workers)
    yield Figure(
        f"steps/s, {ps} PS + {workers} workers, {rule} thread{'s' * (rule > 1)} a task by the rule",
        f"{statistics.median(ruled):.0f}",
        "",
        f"{statistics.median(default):.0f} (TensorFlow's default: {cores} threads a task)",
    )


def steps() -> Iterator[Figure]:
    kinds = {
        "1 PS + 1 worker": {"ps": 1, "workers": 1},
        "1 PS + 2 workers": {"ps": 1, "workers": 2},
        "2 PS + 4 workers": {"ps": 2, "workers": 4},
        "1 PS + 2 workers, synchronous": {"ps": 1, "workers": 2, "sync_replicas": True},
        "2 PS + 4 workers, synchronous": {"ps": 2, "workers": 4, "sync_replicas": True},
        "one process": {"ps": 0, "workers": 1},
    }
    plain = {"ps": 1, "workers": 1, "model": "benchmarks.plain:train", "python_path": (runs.ROOT,)}
    found = {name: statistics.median(r) for name, r in runs.rates({**kinds, "plain": plain}).items()}
    loop = found.pop("plain")
    goals = {
        "1 PS + 1 worker": f">= {2 * loop:.0f}, twice the plain loop",
        "1 PS + 2 workers, synchronous": f">= {0.4 * found['1 PS + 2 workers']:.0f}: each has 2 gradients",
    }
    for name, rate in found.items():
        baseline = f"{loop:.0f} (plain loop, a variable a layer)" if name == "1 PS + 1 worker" else ""
        yield Figure(f"steps/s, {name}", f"{rate:.0f}", goals.get(name, ""), baseline)


def wide() -> Iterator[Figure]:
    size = 4 * runs.WIDE_PARAMETERS
    arguments = {"ps": 1, "workers": 1, "parameters": runs.WIDE, "train_epoch": 100}
    rate = statistics.median(runs.rates({"wide": arguments})["wide"])
    echo = statistics.median(runs.echo_bytes_per_second(size) for _ in range(3))
    yield Figure(
        f"MB/s moved, {runs.WIDE_PARAMETERS / 1e6:.1f} million parameters, 1 PS + 1 worker",
        f"{2 * size * rate / 1e6:.0f} ({rate:.1f} steps/s)",
        "",
        f"{echo / 1e6:.0f} (gRPC echo of as many bytes, nothing computed)",
    )


def phases() -> Iterator[Figure]:
    for ps, workers in ((0, 1), (1, 1), (2, 4)):
        outcomes = runs.phases(ps, workers)
        for name in outcomes[0].phase_seconds:
            seconds = statistics.median(outcome.phase_seconds[name] for outcome in outcomes)
            yield Figure(f"ms of the chief in {name}, {ps} PS + {workers}", f"{1000 * seconds:.0f}")


def hosts() -> Iterator[Figure]:
    if not network.usable():
        yield Figure("hosts: network namespaces need root and iproute2", "not measured")
        return
    alone, spread = namespaces.measure(3)
    one, three = (statistics.median(trial.seconds for trial in found) for found in (alone, spread))
    most = statistics.median(trial.hosts for trial in spread)
    yield Figure(
        f"s a trial, 1 PS + 2 workers, synchronous, on {most:g} hosts",
        f"{three:.2f} ({three / one:.2f}x)",
        "<= 1.3x",
        f"{one:.2f} (one host)",
    )
    worst = max(abs(a.loss / b.loss - 1) for a, b in zip(alone, spread, strict=True))
    yield Figure("largest relative difference of their losses", f"{worst:.1e}", "rounding")


def scale_trials() -> Iterator[Figure]:
    goals = {10: "", 100: ">= 100", 1000: ">= 50"}
    results = {agents: scale.run(scale.Load(agents, trials=3000, reports=5)) for agents in goals}
    for agents, result in results.items():
        name = f"trials/s, {agents} scripted agents"
        yield Figure(name, f"{result.trials_per_second:.0f}", goals[agents])
        cpu = 1000 * result.cpu_seconds / result.load.trials
        yield Figure(f"s of the coordinator's CPU time for 1,000 trials, {agents} agents", f"{cpu:.1f}")
    few, many = results[10], results[1000]
    for what, more in (
        ("connected", many.rss_connected - few.rss_connected),
        ("at the end of as many trials", many.rss_ended - few.rss_ended),
    ):
        each = more / (many.load.agents - few.load.agents)
        yield Figure(f"memory of the coordinator for an agent, {what}, kB", f"{each / 1e3:.0f}", "modest")
    for agents, seconds, goal in ((100, 0.65, "p99 <= 50"), (1000, 6.5, "p99 <= 100")):
        result = scale.run(scale.Load(agents, trials=2000, reports=5, seconds=seconds))
        yield Figure(
            f"a command at {result.trials_per_second:.0f} trials/s, {agents} agents, p50 / p99 ms",
            f"{1000 * result.command_p50:.1f} / {1000 * result.command_p99:.1f}",
            goal,
        )


def scale_reports() -> Iterator[Figure]:
    for load, goal in (
        (scale.Load(10, trials=100, reports=10_000), ""),
        (scale.Load(100, trials=100, reports=10_000), ">= 50,000"),
        (scale.Load(1000, trials=1000, reports=1000), ">= 25,000"),
        (scale.Load(100, trials=100, reports=5000, batch=50), ""),
    ):
        result = scale.run(load)
        yield Figure(
            f"reports/s committed, {load.agents} scripted agents, {load.batch} in a message",
            f"{result.reports_per_second:,.0f}",
            goal,
        )
        cpu = 1e6 * result.cpu_seconds / (load.trials * load.reports)
        yield Figure(
            "s of CPU time for a million of them; a command meanwhile, p50 / p99 ms; MB at the end",
            f"{cpu:.1f}; {1000 * result.command_p50:.0f} / {1000 * result.command_p99:.0f}; "
            f"{result.rss_ended / 1e6:.0f}",
        )
    paced = scale.run(scale.Load(100, trials=400, reports=2750, seconds=4.0))
    yield Figure(
        f"a command at {paced.reports_per_second:,.0f} reports/s committed, 100 agents, p50 / p99 ms",
        f"{1000 * paced.command_p50:.1f} / {1000 * paced.command_p99:.1f}",
        "p99 <= 50",
    )


def tls_commands() -> Iterator[Figure]:
    plain, secure = tls.commands()
    for name in ("inventory", "prepare", "stop"):
        ours, beside = (tls.percentiles(getattr(seconds, name)) for seconds in (secure, plain))
        yield Figure(
            f"{name} with TLS, p50 / p99 ms",
            f"{1000 * ours[0]:.2f} / {1000 * ours[1]:.2f} ({ours[0] / beside[0]:.2f}x)",
            "",
            f"{1000 * beside[0]:.2f} / {1000 * beside[1]:.2f} (plaintext)",
        )
    ours, beside = (statistics.median(seconds.connection) for seconds in (secure, plain))
    yield Figure(
        "a connection with TLS, median ms", f"{1000 * ours:.1f}", "", f"{1000 * beside:.1f} (plaintext)"
    )


def tls_gate() -> Iterator[Figure]:
    found = tls.gate()
    for way in ("TLS", "plaintext"):
        without, gated = found[way], found[f"{way}, gate"]
        # Of each round its own: the machine's speed moves between them.
        ratio = statistics.median(a / b for a, b in zip(gated.rates, without.rates, strict=True))
        cost = statistics.median(a - b for a, b in zip(gated.medians, without.medians, strict=True))
        checks = "role, owner, trust and limits" if way == "TLS" else "limits"
        yield Figure(
            f"the gate with {way} ({checks}): microseconds a call; calls/s, {tls.AT_ONCE} at once",
            f"{1e6 * cost:.0f}; {statistics.median(gated.rates):,.0f} ({ratio:.2f}x)",
            "",
            f"{statistics.median(without.rates):,.0f} (without it)",
        )


def tls_reports() -> Iterator[Figure]:
    load = scale.Load(100, trials=60, reports=10_000)
    secure, plain = [], []
    for _ in range(3):  # interleaved: noise of the machine meets both
        plain.append(scale.run(load))
        secure.append(scale.run(replace(load, tls=True)))
    ours, beside = (statistics.median(r.reports_per_second for r in found) for found in (secure, plain))
    yield Figure(
        f"reports/s committed with TLS, {load.agents} scripted agents",
        f"{ours:,.0f} ({ours / beside:.2f}x)",
        ">= 0.8x",
        f"{beside:,.0f} (plaintext)",
    )
    ours, beside = (
        statistics.median(1e6 * r.cpu_seconds / (load.trials * load.reports) for r in found)
        for found in (secure, plain)
    )
    yield Figure("s of the coordinator's CPU time for a million of them", f"{ours:.1f}", "", f"{beside:.1f}")


def with_tls() -> Iterator[Figure]:
    yield from tls_commands()
    yield from tls_gate()
    yield from tls_reports()


SECTIONS: dict[str, Callable[[], Iterator[Figure]]] = {
    "forks": forks,
    "teardowns": teardowns,
    "start_up": start_up,
    "threads": threads,
    "steps": steps,
    "wide": wide,
    "phases": phases,
    "cluster_trials": cluster_trials,
    "throughput": throughput,
    "hosts": hosts,
    "scale_trials": scale_trials,
    "scale_reports": scale_reports,
    "tls": with_tls,
}


def main() -> None:
    chosen = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        sys.exit(f"no figures named {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    table = Table("figure", "NHOP", "goal", "the original's way", title=f"{os.cpu_count()} CPU cores")
    with console.status("measuring"):
        for name in chosen:
            for figure in SECTIONS[name]():
                table.add_row(figure.name, figure.value, figure.goal, figure.baseline)
    console.print(table)


if __name__ == "__main__":
    main()
