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


@dataclass(frozen=True, slots=True)
class Described:
    """A pipeline as ``text`` (a serialized graph), which can be taken into a graph of another kind."""

    text: bytes
    element_spec: Any

    @classmethod
    def of(cls, dataset: tf.data.Dataset) -> Described:
        """A dataset that was made eagerly; outside of any graph. It keeps to one thread."""
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.autotune.enabled = False
        dataset = dataset.with_options(options)
        described = tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset), strip_device_assignment=True
        )
        return cls(described.numpy(), dataset.element_spec)


Prepared = Arrays | Described


def prepare_training(source: Source, share: Share) -> Prepared:
    """What ``training_input`` takes; to be called outside of any graph. A pipeline never ends, in batches."""
    if isinstance(source, Arrays):
        return source
    dataset = source.dataset
    if share.workers > 1:
        dataset = dataset.shard(share.workers, share.index)
    return Described.of(dataset.repeat().batch(share.batch, drop_remainder=True).prefetch(2))


def prepare_test(source: Source) -> Prepared:
    """What ``test_input`` takes; to be called outside of any graph."""
    if isinstance(source, Arrays):
        return source
    return Described.of(source.dataset.batch(_PIPELINE_EVALUATION_ROWS).prefetch(1))


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

    def add_pipeline(self, pipeline: Described) -> tuple[Any, dict[Any, Any]]:
        """An iterator over a pipeline, and what its initializer is fed."""
        text = v1.placeholder(tf.string, [])
        feed = {text: pipeline.text}
        self.feed.update(feed)
        inside = tf.data.experimental.from_variant(
            tf.raw_ops.DatasetFromGraph(graph_def=text), pipeline.element_spec
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


def training_input(prepared: Prepared, share: Share, local: LocalVariables) -> TrainingInput:
    """The input of a worker, in the current graph; variables are added to ``local``."""
    if isinstance(prepared, Arrays):
        return _DrawnRows(prepared, share, local)
    return _Stream(prepared, local)


def test_input(prepared: Prepared, local: LocalVariables) -> TestInput:
    """The held-out samples, in the current graph; variables are added to ``local``."""
    if isinstance(prepared, Arrays):
        return _AllRows(prepared, local)
    return _WholeStream(prepared, local)


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
    def __init__(self, pipeline: Described, local: LocalVariables) -> None:
        self._iterator, _ = local.add_pipeline(pipeline)

    def batch(self, step: Any) -> tuple[Any, Any]:
        with tf.control_dependencies([step]):
            x, y = self._iterator.get_next()
        return x, y


class _WholeStream:
    def __init__(self, pipeline: Described, local: LocalVariables) -> None:
        self._iterator, self._feed = local.add_pipeline(pipeline)
        self.x, self.y = self._iterator.get_next()

    def restart(self, session: tf.compat.v1.Session) -> None:
        session.run(self._iterator.initializer, self._feed)

    def feeds(self) -> Iterable[dict[Any, Any]]:
        return itertools.repeat({})


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
