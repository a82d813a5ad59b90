"""What the user sees, from scripted updates."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.domain import (
    AttemptId,
    Cluster,
    Failure,
    Notice,
    Reports,
    Stage,
    StageBudget,
    Study,
    StudySpec,
    StudyState,
    Training,
    Trial,
    TrialCounts,
    TrialState,
)
from coordinator.view import watch
from coordinator.view.final import show_result
from coordinator.view.live import LiveView
from coordinator.view.plain import PlainView
from coordinator.view.progress import Progress
from nhop_models.contract import FailureKind, TaskId

BUDGETS = (StageBudget(1000, 2), StageBudget(500, 2))
SPEC = StudySpec("s", 1, BUDGETS, {}, Cluster(1, 2), Training("Regressor", {}, 0.0))
PARAMETERS = {"learning_rate": 0.00213, "hidden_layers": [6, 5], "activation": "relu"}


def study(state=StudyState.RUNNING, stages=1, best=None, **counts):
    begun = tuple(Stage(n, budget, {}, best) for n, budget in enumerate(BUDGETS[:stages], start=1))
    return Study("s", state, begun, 2, TrialCounts(4, **counts), best, "", 100.0)


def trial(number, state=TrialState.RUNNING, **values):
    return Trial(number, 1, state, PARAMETERS, **values)


def report(number, step, loss=0.5, task="worker/0"):
    return Reports(AttemptId("s", number, 1), TaskId.parse(task), [(1, step, loss, None, {}, 100.0)])


CHIEF = TaskId.parse("worker/0")
COMPLETED = trial(1, TrialState.COMPLETED, loss=0.25, val_loss=0.25, train_loss=0.2, seconds=3.21)
FAILED = trial(2, TrialState.FAILED, failure=Failure(FailureKind.DIVERGED, "the loss is [NaN]"))


def console(terminal=False, width=120):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=40)


def test_what_is_no_terminal_gets_plain_lines():
    assert isinstance(watch(SPEC, console()), PlainView)
    assert isinstance(watch(SPEC, console(terminal=True)), LiveView)


def plain_lines(*updates):
    screen = console()
    with watch(SPEC, screen) as show:
        for update in updates:
            show(update)
    return screen.file.getvalue().splitlines()


def test_a_line_for_each_stage_and_each_trial_that_ends():
    lines = plain_lines(study(), trial(1), COMPLETED, trial(2), FAILED, study(), study(stages=2))
    assert len(lines) == 4
    assert "stage 1 of 2" in lines[0]
    assert "trial 1 completed, loss 0.25 in 3.2 s" in lines[1]
    assert "hidden_layers=6-5" in lines[1]
    assert "trial 2 failed (DIVERGED): the loss is [NaN]" in lines[2]
    assert "stage 2 of 2" in lines[3]


TRACEBACK = "\n".join(f"line {n}" for n in range(1, 31))


def broken(number, detail=TRACEBACK, task=CHIEF):
    failure = Failure(FailureKind.USER_CODE, "ValueError: no", detail, task)
    return trial(number, TrialState.FAILED, failure=failure, attempts=2)


def screen_after(*updates, terminal=False):
    screen = console(terminal)
    with watch(SPEC, screen, Path("out/logs")) as show:
        for update in updates:
            show(update)
    return screen.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_failed_trials_last_lines_are_shown_with_the_path_of_its_log(terminal):
    shown = screen_after(broken(3), terminal=terminal)
    assert all(f"    line {n}" in shown for n in range(21, 31))
    assert "line 20" not in shown
    assert shown.index("ValueError: no") < shown.index("    line 21") < shown.index("its log")
    assert "its log: out/logs/trial-3-attempt-2-worker-0.log" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_the_same_last_lines_are_shown_once_and_others_again(terminal):
    shown = screen_after(broken(3), broken(4), broken(5, "other"), terminal=terminal)
    assert shown.count("    line 30") == 1
    assert shown.count("    other") == 1
    assert shown.count("its log") == 3


def test_a_failure_without_a_log_has_no_path():
    assert "its log" not in screen_after(broken(3, task=None))


def test_last_lines_cannot_command_the_terminal():
    assert "\x1b[2J" not in screen_after(broken(3, "\x1b[2J[bold]gone"))
    assert "[bold]gone" in screen_after(broken(3, "[bold]gone"))


def test_a_trial_that_is_better_than_all_before_is_marked():
    losses = (0.5, 0.7, 0.2)
    ended = [trial(n, TrialState.COMPLETED, loss=loss) for n, loss in enumerate(losses, start=1)]
    assert ["the best so far" in line for line in plain_lines(*ended)] == [True, False, True]


def test_losses_of_a_running_trial_are_throttled():
    reports = [report(1, step) for step in range(1, 200)]
    lines = plain_lines(study(), trial(1), *reports)
    assert [line for line in lines if "step" in line and "trial 1" in line] == [
        "trial 1: step 1 of 1000, train_loss 0.5"
    ]


def test_only_the_chiefs_losses_of_running_trials_are_lines():
    assert (
        len(plain_lines(report(1, 5), trial(1), report(1, 5, task="worker/1"), COMPLETED, report(1, 9))) == 1
    )


def test_notices_are_lines():
    assert plain_lines(Notice("[a] host"), Notice("lost", warning=True)) == ["[a] host", "warning: lost"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_display_fits_the_terminal(width):
    screen = console(terminal=True, width=width)
    view = LiveView(SPEC, screen)
    updates = (study(), trial(1), COMPLETED, FAILED, study(best=COMPLETED, completed=1, failed=1, running=2))
    for update in (*updates, trial(3), report(3, 70), trial(4)):
        view(update)
    shown = screen.render_lines(view._render(), pad=False)
    text = "\n".join("".join(segment.text for segment in line) for line in shown)
    assert all(sum(segment.cell_length for segment in line) <= width for line in shown)
    for words in ("stage 1 of 2", "best 0.25", "70/1000", "DIVERGED", "starting"):
        assert words in text


def test_the_live_display_leaves_the_terminal_in_order():
    screen = console(terminal=True)
    with pytest.raises(KeyError), watch(SPEC, screen) as show:
        show(study())
        raise KeyError
    output = screen.file.getvalue()
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is back


def test_many_running_trials_are_cut_short():
    view = LiveView(SPEC, console(terminal=True))
    view(study())
    for number in range(1, 31):
        view(trial(number))
    screen = console()
    screen.print(view._render())
    assert "and 22 more" in screen.file.getvalue()


def test_time_left_follows_the_steps_not_the_trials():
    progress = Progress(SPEC)
    for update in (study(completed=1), trial(1), COMPLETED):
        progress.take(update)
    assert progress.seconds_left(now=130.0) == pytest.approx(60.0)
    progress.take(trial(2))
    progress.take(report(2, 500))
    assert progress.seconds_left(now=130.0) == pytest.approx(30.0)
    assert progress.trials_per_minute(now=130.0) == pytest.approx(2.0)


def test_nothing_is_estimated_before_there_is_anything():
    progress = Progress(SPEC)
    assert (progress.seconds_left(5.0), progress.trials_per_minute(5.0)) == (None, None)


def test_a_new_attempt_starts_from_no_report():
    progress = Progress(SPEC)
    for update in (trial(1), report(1, 500), trial(1, TrialState.WAITING), trial(1)):
        progress.take(update)
    assert progress.reports == {}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_last_words(tmp_path, width):
    screen = console(width=width)
    show_result(study(StudyState.COMPLETED, 2, COMPLETED, completed=3, failed=1), tmp_path, screen)
    text = screen.file.getvalue()
    assert "study s completed: 3 completed, 1 failed" in text
    assert "best loss 0.25 in trial 1 (val_loss 0.25, train_loss 0.2)" in text
    assert f"results in {tmp_path}" in text


def test_the_last_words_tell_both_places(tmp_path):
    screen = console()
    show_result(study(StudyState.COMPLETED, 2, COMPLETED), tmp_path, screen, "s3://bucket/out")
    assert f"results in {tmp_path} and at s3://bucket/out" in screen.file.getvalue()


@pytest.mark.parametrize(
    ("model_trial", "problem", "words"),
    [
        (COMPLETED.number, "", ["its model is", "best_model.keras"]),
        (None, "a: gone", ["its model could not be kept: a: gone"]),
        (COMPLETED.number, "a: gone", ["best_model.keras", "its predictions could not be kept: a: gone"]),
    ],
)
def test_the_last_words_say_what_is_kept(tmp_path, model_trial, problem, words):
    screen = console()
    best = replace(COMPLETED, metrics={"accuracy": 0.9731, "mae": 1.0})
    end = replace(study(StudyState.COMPLETED, 2, best), model_trial=model_trial, model_problem=problem)
    show_result(end, tmp_path, screen)
    said = screen.file.getvalue()
    assert "its metrics: accuracy 0.9731, mae 1" in said
    assert all(word in said for word in words)
    assert ("best_model.keras" in said) == (model_trial is not None)


def test_the_last_words_of_a_study_that_never_began(tmp_path):
    screen = console()
    show_result(Study("s", StudyState.STOPPED, (), 2, TrialCounts(4), reason="[why]"), tmp_path, screen)
    assert "study s stopped" in screen.file.getvalue()
    assert "[why]" in screen.file.getvalue()
