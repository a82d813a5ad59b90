"""The search space as it is written in a configuration."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.config import values
from coordinator.config.keys import SEARCHABLE, SEARCHED, Keys
from coordinator.config.models import SHIPPED
from coordinator.config.source import Document, KeyPath, describe, shorten
from coordinator.search.space import LARGEST_INT, Choice, Dimension, Float, Int, Layers

OPTIMIZERS = ("Adam", "sgd", "Adagrad", "Momentum", "RMSprop", "AdamW")
ACTIVATIONS = (
    "celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish",
    "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu",
    "soft_shrink", "softplus", "softsign", "sparse_plus", "squareplus", "swish", "tanh", "tanh_shrink",
    "threshold",
)  # fmt: skip
"""Keras's activations that make sense between dense layers."""

LAYER_KEYS = {"hidden_layers": ("hidden_layers", "nodes_per_layer"), "activation": ("activation",)}
"""Hyper-parameters of dense layers, and the keys that ask for them with a model that may have none."""

MOST_LAYERS = 1000
MOST_NAMES = 1000
"""Hyper-parameters of a model's own."""
MOST_NODES = 1_000_000
"""Of one layer."""

_RANGE_KEYS = ("low", "high", "log", "step")
_TYPES = ("float", "int", "choice", "layers")
_UNSUPPORTED = ("condition", "conditions", "when")


class SpaceReader:
    """Reads the searched keys of a document; what is wrong goes to its problems."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def read(self, keys: Keys) -> dict[str, Dimension]:
        """Returns the space; the parts that had problems are missing from it."""
        shipped = SHIPPED.get(keys.nn_model)
        read: dict[str, Dimension | None] = {
            "learning_rate": self._float(
                ("learning_rate",), keys.learning_rate, above=0.0, either_order=True
            ),
            "batch_size": self._int(("batch_size",), keys.batch_size, low=1),
            "hidden_layers": self._layers(keys.hidden_layers, keys.nodes_per_layer),
            "activation": self._names(("activation",), keys.activation, ACTIVATIONS if shipped else None),
            "train_optimizer": self._names(("train_optimizer",), keys.train_optimizer, OPTIMIZERS),
        }
        if shipped is None or not shipped.layers:
            # A model of the user's need not have these; searched in vain they would only mislead.
            for name, keys_of in LAYER_KEYS.items():
                if not any(key in self._document.data for key in keys_of):
                    del read[name]
        read |= self._own(keys.search_space)
        return {name: dimension for name, dimension in read.items() if dimension is not None}

    def _problem(self, path: KeyPath, message: str) -> None:
        self._document.problems.append(self._document.problem(path, message))

    def _own(self, space: Any) -> dict[str, Dimension | None]:
        path: KeyPath = ("search_space",)
        if space is None:
            return {}
        if not isinstance(space, dict):
            self._problem(path, f"must be a mapping of names to ranges or choices, not {describe(space)}")
            return {}
        if len(space) > MOST_NAMES:
            self._problem(path, f"must hold at most {MOST_NAMES:,} names, not {len(space):,}")
            return {}
        found: dict[str, Dimension | None] = {}
        for name, value in space.items():
            place = (*path, name)
            if not name.isidentifier():
                self._problem(place, "a name must be made of letters, digits and _, a letter first")
            elif name in SEARCHED:
                self._problem(place, f"{name} is a key of its own: move it out of search_space")
            elif name in Keys.model_fields and name not in SEARCHABLE:
                self._problem(place, f"{name} is a key of the configuration: choose another name")
            else:
                found[name] = self._any(place, value)
                if name in SEARCHABLE and not _counts(found[name], lists=name == "rnn_state_dim"):
                    self._problem(place, "must be whole numbers of at least 1")
        return found

    def _any(self, path: KeyPath, value: Any) -> Dimension | None:
        if isinstance(value, dict):
            return self._typed(path, value)
        if isinstance(value, list):
            numbers = [item for item in value if isinstance(item, int | float) and not isinstance(item, bool)]
            if not numbers:
                return self._choice(path, value)
            if len(numbers) == len(value) == 2:
                exact = all(isinstance(item, int) for item in value)
                return self._int(path, value) if exact else self._float(path, value)
            self._problem(path, "write [low, high] for a range, {options: [...]} for a choice")
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return self._int(path, value)
        return self._float(path, value) if isinstance(value, float) else self._choice(path, [value])

    def _typed(self, path: KeyPath, value: dict[str, Any]) -> Dimension | None:
        kind = value.get("type")
        if kind is None:
            kind = next(
                (k for k, sign in (("choice", "options"), ("layers", "nodes")) if sign in value), None
            )
        if kind is None:
            bounds = [value.get("low"), value.get("high"), value.get("step")]
            kind = "float" if any(isinstance(bound, float) for bound in bounds) else "int"
        if kind == "categorical":
            kind = "choice"
        if kind not in _TYPES:
            self._problem((*path, "type"), f"must be {', '.join(_TYPES)}, not {describe(kind)}")
            return None
        rest = {key: inner for key, inner in value.items() if key != "type"}
        if kind == "choice":
            if not self._known(path, rest, ("options",), required=("options",)):
                return None
            return self._choice((*path, "options"), rest["options"])
        if kind == "layers":
            if not self._known(path, rest, ("count", "nodes"), required=("count", "nodes")):
                return None
            return self._make_layers(path, (*path, "count"), rest["count"], (*path, "nodes"), rest["nodes"])
        return self._float(path, rest) if kind == "float" else self._int(path, rest)

    def _float(
        self, path: KeyPath, value: Any, *, above: float | None = None, either_order: bool = False
    ) -> Float | None:
        options = self._range(path, value, lambda bound: values.number(bound, above=above), either_order)
        return None if options is None else self._make(path, Float, options)

    def _int(
        self, path: KeyPath, value: Any, *, low: int | None = None, high: int = LARGEST_INT
    ) -> Int | None:
        options = self._range(path, value, values.bounded_whole(low, high), False)
        return None if options is None else self._make(path, Int, options)

    def _make(self, path: KeyPath, kind: Callable[..., Any], options: dict[str, Any]) -> Any:
        try:
            return kind(**options)
        except ValueError as error:
            self._problem(path, str(error))
            return None

    def _range(
        self, path: KeyPath, value: Any, bound: Callable[[Any], Any], either_order: bool
    ) -> dict[str, Any] | None:
        """Reads ``[low, high]``, ``[value]``, ``value`` or ``{low, high, log, step}``."""
        options: dict[str, Any] = {}
        if isinstance(value, dict):
            rest = {key: inner for key, inner in value.items() if key != "type"}
            if not self._known(path, rest, _RANGE_KEYS, required=("low", "high")):
                return None
            given = {(*path, key): rest[key] for key in ("low", "high")}
            options = {key: rest[key] for key in ("log", "step") if rest.get(key) is not None}
        elif isinstance(value, list):
            if len(value) not in (1, 2):
                what = "has no bounds" if not value else f"has {len(value)} values"
                self._problem(path, f"{what}: write [low, high], or one value to fix it")
                return None
            given = {(*path, place): inner for place, inner in enumerate(value)}
        else:
            given = {path: value}
        found: list[Any] = []
        for place, inner in given.items():
            try:
                found.append(bound(inner))
            except ValueError as error:
                self._problem(place, str(error))
        if not self._checked(path, options, bound) or len(found) < len(given):
            return None
        low, high = found[0], found[-1]
        if low > high:
            if not either_order:
                self._problem(path, f"the bounds are reversed: write [{high:g}, {low:g}]")
                return None
            low, high = high, low
        return {"low": low, "high": high, **options}

    def _checked(self, path: KeyPath, options: dict[str, Any], bound: Callable[[Any], Any]) -> bool:
        for key, check in (("log", values.flag), ("step", bound)):
            if key in options:
                try:
                    options[key] = check(options[key])
                except ValueError as error:
                    self._problem((*path, key), str(error))
                    return False
        return True

    def _layers(self, layers: Any, nodes: Any) -> Dimension | None:
        path: KeyPath = ("hidden_layers",)
        if isinstance(layers, dict) and "layers" in layers:
            return self._fixed_layers(path, layers)
        if nodes is None:
            count = self._int(path, layers, low=0, high=MOST_LAYERS)
            if count is None:
                return None
            smallest = max(count.low, 1)
            nodes_range = Int(smallest, max(count.high, smallest), count.log, count.step)
            return Layers(count, nodes_range)
        return self._make_layers(path, path, layers, ("nodes_per_layer",), nodes)

    def _make_layers(
        self, path: KeyPath, count_path: KeyPath, count: Any, nodes_path: KeyPath, nodes: Any
    ) -> Layers | None:
        number = self._int(count_path, count, low=0, high=MOST_LAYERS)
        size = self._int(nodes_path, nodes, low=1, high=MOST_NODES)
        if number is None or size is None:
            return None
        made: Layers | None = self._make(path, Layers, {"count": number, "nodes": size})
        return made

    def _fixed_layers(self, path: KeyPath, value: dict[str, Any]) -> Choice | None:
        if not self._known(path, value, ("layers",)):
            return None
        place = (*path, "layers")
        if not isinstance(value["layers"], list):
            self._problem(place, f"must be a list of node counts, not {describe(value['layers'])}")
            return None
        try:
            values.whole(len(value["layers"]), high=MOST_LAYERS)
            return Choice((tuple(values.whole(nodes, 1, MOST_NODES) for nodes in value["layers"]),))
        except ValueError as error:
            self._problem(place, str(error))
            return None

    def _names(self, path: KeyPath, value: Any, known: tuple[str, ...] | None) -> Choice | None:
        if isinstance(value, dict):
            if not self._known(path, value, ("type", "options"), required=("options",)):
                return None
            path, value = (*path, "options"), value["options"]
        try:
            names = values.listed(value, values.text)
        except ValueError as error:
            self._problem(path, str(error))
            return None
        meant = {name.lower(): name for name in known or names}
        for name in names:
            if name.lower() not in meant:
                near = difflib.get_close_matches(name.lower(), meant, 1)
                hint = f"did you mean {meant[near[0]]}?" if near else f"there are {', '.join(known or ())}"
                self._problem(path, f"no such {path[0]}: {shorten(name)!r}; {hint}")
                return None
        return self._choice(path, [meant[name.lower()] for name in names] if known else list(names))

    def _choice(self, path: KeyPath, value: Any) -> Choice | None:
        options = value if isinstance(value, list) else [value]
        if not options:
            self._problem(path, "must not be an empty list: give at least one option")
            return None
        for option in options:
            items = option if isinstance(option, list) else [option]
            if not all(isinstance(item, bool | str) or _is_finite(item) for item in items):
                self._problem(
                    path, f"an option must be a number, a text, true or false, not {describe(option)}"
                )
                return None
        plain = [tuple(option) if isinstance(option, list) else option for option in options]
        repeated = [option for place, option in enumerate(plain) if _same(option, plain[:place])]
        if repeated:
            self._problem(path, f"{describe(repeated[0])} is given twice")
            return None
        return Choice(tuple(plain))

    def _known(
        self, path: KeyPath, value: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...] = ()
    ) -> bool:
        good = True
        for key in value:
            if key in _UNSUPPORTED:
                self._problem((*path, key), "conditions are not in this version: leave it out")
                good = False
            elif key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                self._problem((*path, key), f"unknown key; {hint}")
                good = False
        for key in required:
            if key not in value:
                self._problem(path, f"{key} is missing")
                good = False
        return good


def _counts(dimension: Dimension | None, *, lists: bool) -> bool:
    """Whether all values are whole numbers of at least 1, or with ``lists`` lists of them, too."""
    match dimension:
        case None:
            return True  # what is wrong has been said
        case Int():
            return dimension.low >= 1
        case Layers():
            return lists and dimension.count.low >= 1
        case Choice():
            options = [o if lists and isinstance(o, tuple) and o else (o,) for o in dimension.options]
            return all(type(item) is int and item >= 1 for option in options for item in option)
    return False


def _is_finite(value: Any) -> bool:
    try:
        values.number(value)
    except ValueError:
        return False
    return True


def _same(option: Any, others: list[Any]) -> bool:
    return any(type(option) is type(other) and option == other for other in others)
