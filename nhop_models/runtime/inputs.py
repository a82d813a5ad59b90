"""Batches inside the graph: drawn from arrays, or taken from a ``tf.data`` pipeline.

Nothing is fed for a step. Which rows a batch has follows from the seed and the step alone, and with
synchronous training the batches of all workers together are those that one worker with their whole
size would have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from nhop_models.base import DataError
from nhop_models.runtime.data import Arrays, Pipeline, Source

v1 = tf.compat.v1

EVALUATION_ROWS = 8192
"""Held-out samples that are evaluated at once, at most."""
_PIPELINE_EVALUATION_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of the samples: its batches have ``batch`` rows, drawn by ``seed``.

    It is number ``index`` of ``workers``; ``together``: they share each step's draw, which has the
    same seed for all of them. Each takes its own elements of a pipeline in any case.
    """

    batch: int
    index: int
    workers: int
    together: bool
    seed: int


class LocalVariables:
    """Variables of this worker alone, filled by feeding, so that graphs stay small."""

    def __init__(self) -> None:
        self.feed: dict[Any, Any] = {}
        self._initializers: list[Any] = []

    def add(self, value: Any) -> Any:
        """A variable that begins as the array ``value``."""
        initial = v1.placeholder(value.dtype, value.shape)
        variable = v1.Variable(
            initial, trainable=False, collections=[v1.GraphKeys.LOCAL_VARIABLES], use_resource=True
        )
        self.feed[initial] = value
        self._initializers.append(variable.initializer)
        return variable

    def add_dataset(self, dataset: tf.data.Dataset) -> tuple[Any, dict[Any, Any]]:
        """An iterator over a dataset that was made outside of the graph, and what its initializer is fed."""
        described = tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset), strip_device_assignment=True
        )
        text = v1.placeholder(tf.string, [])
        feed = {text: described.numpy()}
        self.feed.update(feed)
        inside = tf.data.experimental.from_variant(
            tf.raw_ops.DatasetFromGraph(graph_def=text), dataset.element_spec
        )
        iterator = v1.data.make_initializable_iterator(inside)
        self._initializers.append(iterator.initializer)
        return iterator, feed

    @property
    def initializer(self) -> Any:
        """Fills all of them; ``feed`` is to be fed."""
        return tf.group(*self._initializers)


class TrainingInput(Protocol):
    """Batches to train on."""

    def batch(self, step: Any) -> tuple[Any, Any]:
        """Features and targets of the batch that belongs to ``step`` (a tensor); for use in loops."""


class TestInput(Protocol):
    """All held-out samples, batch by batch."""

    x: Any
    y: Any

    def restart(self, session: tf.compat.v1.Session) -> None:
        """Begins with the first batch."""

    def feeds(self) -> Iterable[dict[Any, Any]]:
        """What to feed for each batch; OutOfRangeError may end them earlier."""


def training_input(source: Source, share: Share, local: LocalVariables) -> TrainingInput:
    """The input of a worker; variables are added to ``local``."""
    if isinstance(source, Arrays):
        return _DrawnRows(source, share, local)
    return _Stream(source, share, local)


def test_input(source: Source, local: LocalVariables) -> TestInput:
    """The held-out samples; variables are added to ``local``."""
    if isinstance(source, Arrays):
        return _AllRows(source, local)
    return _WholeStream(source, local)


class _DrawnRows:
    """Rows drawn with replacement."""

    def __init__(self, source: Arrays, share: Share, local: LocalVariables) -> None:
        self._share = share
        self._rows = source.rows
        self._variables = tf.nest.map_structure(local.add, (source.x, source.y))

    def batch(self, step: Any) -> tuple[Any, Any]:
        share = self._share
        number = share.batch * (share.workers if share.together else 1)
        seed = tf.stack([tf.constant(share.seed, tf.int64), tf.cast(step, tf.int64)])
        drawn = tf.random.stateless_uniform([number], seed, 0, self._rows, tf.int64, alg="philox")
        if share.together:
            drawn = drawn[share.index :: share.workers]
        x, y = tf.nest.map_structure(lambda v: tf.gather(v.read_value(), drawn), self._variables)
        return x, y


class _AllRows:
    def __init__(self, source: Arrays, local: LocalVariables) -> None:
        self._rows = source.rows
        self._begin, self._end = v1.placeholder(tf.int64, []), v1.placeholder(tf.int64, [])
        self.x, self.y = tf.nest.map_structure(
            lambda array: local.add(array).read_value()[self._begin : self._end], (source.x, source.y)
        )

    def restart(self, session: tf.compat.v1.Session) -> None:
        pass

    def feeds(self) -> Iterable[dict[Any, Any]]:
        for begin in range(0, self._rows, EVALUATION_ROWS):
            yield {self._begin: begin, self._end: min(begin + EVALUATION_ROWS, self._rows)}


class _Stream:
    """Every ``workers``-th element, without an end."""

    def __init__(self, source: Pipeline, share: Share, local: LocalVariables) -> None:
        dataset = source.dataset
        if share.workers > 1:
            dataset = dataset.shard(share.workers, share.index)
        dataset = dataset.repeat().batch(share.batch, drop_remainder=True).prefetch(2)
        self._iterator, _ = local.add_dataset(_single_threaded(dataset))

    def batch(self, step: Any) -> tuple[Any, Any]:
        with tf.control_dependencies([step]):
            x, y = self._iterator.get_next()
        return x, y


class _WholeStream:
    def __init__(self, source: Pipeline, local: LocalVariables) -> None:
        dataset = _single_threaded(source.dataset.batch(_PIPELINE_EVALUATION_ROWS).prefetch(1))
        self._iterator, self._feed = local.add_dataset(dataset)
        self.x, self.y = self._iterator.get_next()

    def restart(self, session: tf.compat.v1.Session) -> None:
        session.run(self._iterator.initializer, self._feed)

    def feeds(self) -> Iterable[dict[Any, Any]]:
        return itertools.repeat({})


def _single_threaded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A pipeline that keeps to its task's share of the cores."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    return dataset.with_options(options)


def unbatched(source: Source, rank: int | None, name: str) -> Source:
    """A pipeline of single samples: one whose features have the model's ``rank`` is taken apart.

    ``rank`` includes the batch; None: not known. Raises DataError where they do not go together.
    """
    if isinstance(source, Arrays) or rank is None:
        return source
    spec = tf.nest.flatten(source.dataset.element_spec[0])[0]
    found = spec.shape.rank
    if found is None or found == rank - 1:
        return source
    if found != rank:
        raise DataError(
            f"load_data: the {name} dataset has features of shape {spec.shape}, the model takes samples with "
            f"{rank - 1} dimension{'s'[: rank != 2]}"
        )
    return Pipeline(source.dataset.unbatch())
