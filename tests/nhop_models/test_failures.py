"""Kinds and messages of what ends a task."""

from __future__ import annotations

import json
import runpy

import pytest
import tensorflow as tf

from nhop_models.contract import FailureKind
from nhop_models.fetching import NotNowError
from nhop_models.runtime.failures import classify


def caught(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def test_a_lost_server_is_one_only_where_there_are_servers():
    lost = tf.errors.UnavailableError(None, None, "failed to connect to all addresses")
    assert classify(lost, shipped=True, served=True)[0] is FailureKind.PEER_LOST
    kind, message = classify(lost, shipped=False, served=False)
    assert kind is FailureKind.USER_CODE
    assert "failed to connect" in message


def test_the_cause_is_said_not_the_frame_that_a_session_puts_around_it():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        wrong = tf.debugging.check_numerics(
            tf.constant(1.0) / tf.compat.v1.placeholder(tf.float32, []), "no good"
        )
        error = caught(session.run, wrong, {wrong.graph.get_tensor_by_name("Placeholder:0"): 0.0})
    assert "Graph execution error" in str(error)
    assert classify(error, shipped=False, served=False)[1].startswith("InvalidArgumentError: no good")


def test_the_place_is_the_users_last_line_not_the_standard_librarys():
    kind, message = classify(caught(json.loads, "{"), shipped=True, served=False)
    assert kind is FailureKind.USER_CODE
    assert "test_failures.py" in message


def test_data_that_may_come_later_is_no_fault_of_the_data():
    kind, message = classify(NotNowError("s3://b/t.csv: try again later"), shipped=True, served=False)
    assert kind is FailureKind.RESOURCES
    assert message == "s3://b/t.csv: try again later"


def test_a_place_in_code_that_was_sent_is_told_as_the_user_knows_it(tmp_path):
    folder = tmp_path / "bundles" / ("0" * 64) / "helpers"
    folder.mkdir(parents=True)
    (folder / "scale.py").write_text("1 / 0\n")
    error = caught(runpy.run_path, str(folder / "scale.py"))
    assert "(in helpers/scale.py:1, " in classify(error, shipped=False, served=False)[1]


@pytest.mark.parametrize("served", [False, True])
def test_out_of_memory(served):
    kind, message = classify(MemoryError(), shipped=True, served=served)
    assert kind is FailureKind.RESOURCES
    assert "batch_size" in message
