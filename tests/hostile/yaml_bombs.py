"""Texts that are small as YAML and large, deep or slow as values; each with what must be said of it."""

from __future__ import annotations

import itertools

_LEVELS = "abcdefghi"
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise(_LEVELS)
)
_MANY = "more than 20,000 values"
_DEEP = "nested more than 20 deep"
_MORE = "and perhaps more"

BOMBS = {
    "laughs": (_LAUGHS, _MANY),
    "lists in lists": ("a: " + "[" * 100_000, _DEEP),
    "mappings in mappings": ("a: " + "{a: " * 50_000, _DEEP),
    "indented": ("\n".join(" " * n + "a:" for n in range(1400)), _DEEP),
    "dashes": ("- " * 300_000, _DEEP),
    "questions": ("? " * 200_000, _DEEP),
    "itself": ("a: &a {b: *a}", "refers to itself"),
    "list of itself": ("&a [*a]", "must hold `key: value` lines"),
    "python tag": ("a: !!python/object/apply:os.system ['touch nhop-pwned']", "is not supported"),
    "long tag": (f"a: !{'x' * 900_000} 1", "is not supported"),
    "tags": (f"a: !x [{'!y 1,' * 90_000}]", _MORE),
    "long text": (f"a: {'x' * 1_000_000}", "unknown key"),
    "long key": (f"? {'x' * 100_000}\n: 1", "unknown key"),
    "escapes": (f'a: "{chr(92)}u0000{"x" * 900_000}"', "unknown key"),
    "too long": ("#" * (1 << 21), "larger than 1024 KiB"),
    "comment": ("#" * 1_000_000, "is empty"),
    "unknown keys": ("".join(f"k{n}: 1\n" for n in range(9_000)), _MORE),
    "keys": ("".join(f"k{n}: 1\n" for n in range(80_000)), _MANY),
    "same keys": ("a: 1\n" * 100_000, _MORE),
    "unknown anchors": ("a: *b\n" * 50_000, _MORE),
    "anchors": ("".join(f"k{n}: &a{n} x\n" for n in range(21_000)), _MANY),
    "addresses": (f"worker_hosts: [{','.join(f'a{n}:1' for n in range(19_000))}]", "at most 1,000 addresses"),
    "choices": (f"activation: [{','.join(f'a{n}' for n in range(19_000))}]", "no such activation"),
    "documents": ("a: 1\n" + "---\n" * 200_000, "a second document"),
    "merge": ("<<: {a: 1}", "merging with << is not supported"),
    "NUL": ("a: \0", "is not YAML"),
    "version": ("%YAML 9.9\n---\na: 1", "is not YAML"),
}
