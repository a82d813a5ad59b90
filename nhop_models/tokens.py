"""Source code as tokens: delimiters, keywords, and nothing that names a project.

One tokeniser serves all languages, for it must not know which one it reads: comments, strings and
shebangs are found by rules that are the same for every file, and are left out or replaced. What is
left of a file is its delimiters and operators, its keywords, and placeholders for all other words,
for numbers and for strings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

Array = np.ndarray[Any, Any]
Tokens: TypeAlias = "list[str]"

PADDING = 0
"""Code of the places behind the end of a short text; the model masks it."""

WORD, NUMBER, STRING = "<word>", "<number>", "<string>"

OPERATORS = (
    "...", "<=>", "<<=", ">>=", "&&=", "||=", "//=", "**=",
    "->", "=>", "::", "==", "!=", "<=", ">=", "&&", "||", "++", "--", "+=", "-=", "*=", "/=", "|=", "&=",
    "<<", ">>", "=~", "!~", "**", "//", ";;", "..", "##", "$(", "${", "$#", "$@", "[[", "]]", ":=",
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~",
)  # fmt: skip
"""Delimiters and operators of several languages, the longest first."""

# What is dropped or replaced must not need to know the language. A "#" that begins a directive of the C
# preprocessor is code; one that stands alone, with a blank or another "#" behind it, begins a comment. The
# end of its line belongs to it, so that an empty one is not taken for the operator.
_DIRECTIVES = "define|ifdef|ifndef|endif|include|undef|elif|pragma"
_PATTERN = re.compile(
    rf"""
      \A\#!.*                                                   # shebang
    | /\*(?s:.*?)\*/ | ^[ \t]*//.*\n?                           # comments of C
    | (?:^|(?<=\s))\#(?![ \t]*(?:{_DIRECTIVES})\b)(?=[\s#!]|$).*\n? # comments of scripts
    | ^=[a-z](?s:.*?)(?:^=cut\b.*|\Z)                           # documentation of Perl
    | \"\"\"(?s:.*?)\"\"\" | '''(?s:.*?)'''                     # texts
    | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*'
    | [^\W\d]\w*                                                # words
    | \d[\w.]*                                                  # numbers
    | {"|".join(map(re.escape, OPERATORS))}
    """,
    re.VERBOSE | re.MULTILINE,
)
_KEYWORD = re.compile(r"[a-z]{2,12}")
_COMMENT_STARTS = ("/*", "//", "#", "=")
_OPERATORS = frozenset(OPERATORS)


class _Tokens(dict[str, str]):
    """What each found text is as a token; "" for what is left out. Texts repeat within a file."""

    def __missing__(self, found: str) -> str:
        token = self[found] = _token(found)
        return token


def tokenise(text: str) -> Tokens:
    """Operators, words that may be keywords (lower-case letters only), and placeholders; no comments."""
    tokens = _Tokens()
    return [token for found in _PATTERN.findall(text) if (token := tokens[found])]


def _token(found: str) -> str:
    if found in _OPERATORS or _KEYWORD.fullmatch(found):
        return found
    first = found[0]
    if first.isdigit():
        return NUMBER
    if first in "\"'":
        return STRING
    return "" if found.lstrip(" \t").startswith(_COMMENT_STARTS) else WORD


class Vocabulary:
    """Codes of tokens: placeholders and operators first, then the keywords that were learned."""

    def __init__(self, keywords: Sequence[str]) -> None:
        self.keywords = tuple(keywords)
        known = [WORD, NUMBER, STRING, *OPERATORS, *self.keywords]
        self._codes = {token: code for code, token in enumerate(known, start=PADDING + 1)}
        self._word = self._codes[WORD]

    @classmethod
    def learn(cls, files: Iterable[Tokens], *, size: int, least: float) -> Vocabulary:
        """Takes for keywords the words of the most files: ``size`` at most, each in a share ``least``.

        Only files to train on may be given, or the held-out ones would not be unseen.
        """
        counts: Counter[str] = Counter()
        number = 0
        for tokens in files:
            counts.update({token for token in tokens if token.isalpha()})
            number += 1
        frequent = [word for word, count in counts.items() if count >= least * number]
        return cls(sorted(frequent, key=lambda word: (-counts[word], word))[:size])

    def __len__(self) -> int:
        """The number of codes, that of the padding included."""
        return len(self._codes) + 1

    def encode(self, tokens: Tokens) -> Array:
        """The codes (tokens,), int32; a word that is no keyword is WORD."""
        codes, word = self._codes, self._word
        return np.array([codes.get(token, word) for token in tokens], np.int32)
