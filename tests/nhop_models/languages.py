"""Folders of source files in two languages that were made up."""

from __future__ import annotations

import random
from pathlib import Path


def expression(draw: random.Random) -> str:
    """Names and numbers, the same in both languages."""
    terms = [f"{draw.choice('abcdefgh')}_{draw.randrange(99)}"]
    for _ in range(draw.randrange(5)):
        terms += [draw.choice("+-*/<>"), str(draw.randrange(1000))]
    return " ".join(terms)


def statement(language: str, draw: random.Random) -> str:
    """One line."""
    first, second = expression(draw), expression(draw)
    if language == "braces":
        forms = [f"if ({first}) {{ x_1 = {second}; }}", f"while ({first}) {{ }}", f"return {first};"]
    else:
        forms = [f"if {first}: x_1 = {second}", f"for x_1 in {first}:", f"return {first}"]
    return draw.choice(forms)


def make_languages(folder: Path, files: int = 40, lines: int = 40) -> Path:
    """Fills ``folder`` with ``files`` files each of the languages ``braces`` and ``colons``."""
    for language in ("braces", "colons"):
        (folder / language).mkdir(parents=True)
        for number in range(files):
            draw = random.Random(f"{language}{number}")
            text = "\n".join(statement(language, draw) for _ in range(lines))
            (folder / language / f"{number:03d}.txt").write_text(text)
    return folder
