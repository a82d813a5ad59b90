"""Writing a resolved configuration out as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from coordinator.config.keys import SEARCHED, WITHOUT_EFFECT, Keys
from coordinator.config.source import scalar

_LEFT_OUT = {
    "train_epoch",  # opt_stages says it
    "opt_epoch",
    "ps_hosts",  # cluster says it
    "worker_hosts",
    "num_gpus",  # gpus_per_worker says it
    "pruner",
    *WITHOUT_EFFECT,
}
_COMMENT_COLUMN = 44
_WIDTH = 10_000  # never wrap: one key, one line, one comment


def render(keys: Keys, space: Mapping[str, Any]) -> str:
    """Writes one line a key with what it is for; ``space`` as ``space_to_json`` gives it."""
    data = keys.model_dump(mode="json")
    searched = [name for name in SEARCHED if name != "hidden_layers"]
    data |= {name: _short(space[name]) if name in space else None for name in searched}
    data["hidden_layers"] = None
    data["nodes_per_layer"] = None
    if (layers := space.get("hidden_layers")) is not None:
        if layers["type"] == "layers":
            data["hidden_layers"], data["nodes_per_layer"] = _short(layers["count"]), _short(layers["nodes"])
        else:
            data["hidden_layers"] = {"layers": layers["options"][0]}
    data["search_space"] = {name: value for name, value in space.items() if name not in SEARCHED}
    lines = []
    for name, field in Keys.model_fields.items():
        value = data[name]
        if name in _LEFT_OUT or value is None or value == {}:
            continue
        if name == "search_space":
            lines.append("search_space:" + _comment("search_space:", field.description))
            lines += [f"  {_flow(own)}: {_flow(dimension)}" for own, dimension in value.items()]
            continue
        line = f"{name}: {_flow(value)}"
        lines.append(line + _comment(line, field.description))
    return "\n".join(lines) + "\n"


def _comment(line: str, text: str | None) -> str:
    return f"{' ' * max(_COMMENT_COLUMN - len(line), 2)}# {text}" if text else ""


def _short(dimension: Mapping[str, Any]) -> Any:
    """Returns a dimension in the shortest form that a configuration has for it."""
    if dimension["type"] == "choice":
        return dimension["options"]
    if "log" in dimension or "step" in dimension:
        return {key: value for key, value in dimension.items() if key != "type"}
    low, high = dimension["low"], dimension["high"]
    return low if low == high else [low, high]


class _Dumper(yaml.SafeDumper):
    """Quotes also those texts that ``coordinator.config.source`` reads as numbers, such as ``1e-5``."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Represents a text."""
        quoted = not isinstance(scalar(text), str)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Writes plain values as YAML text that reads as the same values: 1.0 stays 1.0."""
    return _flow(values)


def _flow(value: Any) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=_WIDTH, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
