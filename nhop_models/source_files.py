"""Folders of source code: reading them, dropping copies, and a split that keeps relatives together."""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nhop_models import datasets
from nhop_models.base import DataError
from nhop_models.tokens import Tokens, tokenise

Array = np.ndarray[Any, Any]

MOST_BYTES = 16384
"""What is read of a file: its beginning."""
MOST_FILES = 4000
"""What is read of a language; of more files, evenly spread ones."""
LEAST_TOKENS = 20
"""A file with fewer says too little."""

_SPLIT_STREAM = 5
_SHINGLE = 16  # tokens that are compared at once, a power of 2
_SKETCH = 32  # shingles that stand for a file
_MIXER = np.array([0xBF58476D1CE4E5B9, 0x9E3779B97F4A7C15, 29], np.uint64)
_ALIKE = 0.5  # share of the sketch


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of code: where it is below the folder, its language's number, its tokens."""

    path: str
    language: int
    tokens: Tokens


def read_folder(location: str) -> tuple[list[SourceFile], tuple[str, ...], Counter[str]]:
    """Reads a folder with one sub-folder for each language, at any depth below these.

    Returns the files in the order of their paths, the languages, and how many files were left out
    for which reason. Symbolic links are never followed, hidden names never read; of files with the
    same tokens only the first is kept. Raises DataError where there are not two languages.
    """
    folder = Path(location)
    if not folder.is_dir():
        raise DataError(
            f"load_data_dir: {folder} does not exist or is not a folder; it must have one sub-folder of "
            "source files for each language"
        )
    try:
        languages = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
        files, left_out = _read(folder, languages)
    except OSError as error:
        raise DataError(f"load_data_dir: {folder} cannot be read: {error.strerror or error}") from error
    found = {file.language for file in files}
    empty = [name for number, name in enumerate(languages) if number not in found]
    if len(languages) < 2 or empty:
        problem = f"no usable file in {', '.join(empty)}" if empty else "fewer than two sub-folders"
        why = f" (left out: {describe(left_out)})" if left_out else ""
        raise DataError(
            f"{folder}: {problem}{why}; there must be one sub-folder of source files for each language, "
            "and at least two languages"
        )
    return files, tuple(languages), left_out


def describe(left_out: Counter[str]) -> str:
    """The counts in words: ``3 not UTF-8 text, 1 link``."""
    return ", ".join(f"{number} {why}" for why, number in sorted(left_out.items())) or "none"


def split(
    files: Sequence[SourceFile], languages: Sequence[str], *, seed: int
) -> tuple[list[SourceFile], list[SourceFile]]:
    """Files to train on and to hold out: of each language a random fifth, at least one.

    Files that are nearly the same stand on the same side. Raises DataError where a language has
    nothing to hold out.
    """
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    relatives: dict[int, list[SourceFile]] = defaultdict(list)
    for file, group in zip(files, _groups(files), strict=True):
        relatives[group].append(file)
    train: list[SourceFile] = []
    test: list[SourceFile] = []
    for number, language in enumerate(languages):
        groups = [group for group in relatives.values() if group[0].language == number]
        wanted = max(1, round(sum(map(len, groups)) * datasets.TEST_FRACTION))
        if len(groups) < 2:
            raise DataError(
                f"{language}: all its files are nearly the same, or there is one only; at least two that "
                "differ are needed, one to train on and one to hold out"
            )
        held_out = 0
        for place, index in enumerate(rng.permutation(len(groups))):
            kin = groups[index]
            # The first group is held out however large, the last is always there to train on.
            fits = held_out + len(kin) <= wanted or place == 0
            if fits and place < len(groups) - 1:
                test += kin
                held_out += len(kin)
            else:
                train += kin
    return train, test


def _read(folder: Path, languages: Sequence[str]) -> tuple[list[SourceFile], Counter[str]]:
    left_out: Counter[str] = Counter()
    files: list[SourceFile] = []
    seen: set[int] = set()
    for number, language in enumerate(languages):
        paths = _paths(folder / language, left_out)
        step = -(-len(paths) // MOST_FILES) or 1
        left_out.update({"beyond the most of a language": len(paths) - len(paths[::step])})
        for path in paths[::step]:
            text = _text(path, left_out)
            if text is None:
                continue
            tokens = tokenise(text)
            if len(tokens) < LEAST_TOKENS:
                left_out["too short"] += 1
            elif (mark := hash(tuple(tokens))) in seen:
                left_out["copies of others"] += 1
            else:
                seen.add(mark)
                files.append(SourceFile(str(path.relative_to(folder)), number, tokens))
    return files, +left_out


def _paths(folder: Path, left_out: Counter[str]) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left_out["links"] += sum(Path(root, name).is_symlink() for name in folders)
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _text(path: Path, left_out: Counter[str]) -> str | None:
    """The beginning of a regular file, or None, counted, where it is none or holds no text."""
    try:
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind):
            left_out["links" if stat.S_ISLNK(kind) else "no files"] += 1
            return None
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except OSError:
        left_out["unreadable"] += 1
        return None
    try:
        # A character may be cut in two at the end of what is read.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=len(data) < MOST_BYTES)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        left_out["not UTF-8 text"] += 1
        return None
    return text.replace("\r\n", "\n")


def _groups(files: Sequence[SourceFile]) -> list[int]:
    """A number for each file; files of a language that are nearly the same have the same one.

    Two files are alike where half of their sketches agree: the smallest hashes of all runs of
    _SHINGLE tokens (Broder 1997, "On the resemblance and containment of documents"). A file is
    compared with the first one that has a hash of its sketch.
    """
    numbers: dict[str, int] = {}
    groups = list(range(len(files)))
    first: dict[tuple[int, int], int] = {}
    sketches: list[set[int]] = []
    for index, file in enumerate(files):
        codes = [numbers.setdefault(token, len(numbers) + 1) for token in file.tokens]
        sketch = _sketch(np.array(codes, np.uint64))
        sketches.append(sketch)
        for other in {first.setdefault((file.language, mark), index) for mark in sketch} - {index}:
            if len(sketch & sketches[other]) >= _ALIKE * min(len(sketch), len(sketches[other])):
                older, newer = sorted((groups[other], groups[index]))
                groups = [older if number == newer else number for number in groups]
    return groups


def _sketch(codes: Array) -> set[int]:
    """The smallest hashes of the runs of _SHINGLE codes: each round joins two neighbouring runs."""
    shift = 1
    while shift < _SHINGLE and len(codes) > shift:
        codes = (codes[:-shift] * _MIXER[0] + codes[shift:]) * _MIXER[1]
        codes ^= codes >> _MIXER[2]
        shift *= 2
    return set(np.partition(codes, min(_SKETCH, len(codes) - 1))[:_SKETCH].tolist())
