"""The tokeniser of source code, and the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhop_models.tokens import NUMBER, OPERATORS, PADDING, STRING, WORD, Vocabulary, tokenise


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("#!/bin/sh\nset -e\n", "set - e"),
        ("# a comment\nx  # another\n#\n", "x"),
        ("/* GPL,\n version 2 */ int a; // left as it is", "int a ; // left as it is"),
        ("  // a comment\nint a;", "int a ;"),
        ("#include <stdio.h>\n# define N 0x1F", f"# include < stdio . h > # define {WORD} {NUMBER}"),
        ('"""a\nb""" \'c\' "d\\"e" \'f', f"{STRING} {STRING} {STRING} ' f"),
        ("=pod\n\nGPL\n\n=cut\nmy $x_1 = @_;", f"my $ {WORD} = @ {WORD} ;"),
        ("Debian my_name x1 for _ ümlaut", f"{WORD} {WORD} {WORD} for {WORD} {WORD}"),
        ("a->b => c::d == 1.5e3 ${e} [[ f ]]", f"a -> b => c :: d == {NUMBER} ${{ e }} [[ f ]]"),
    ],
)
def test_what_is_kept_and_what_is_not(text, tokens):
    one = [word if len(word) > 1 or not word.isalpha() else WORD for word in tokens.split()]
    assert tokenise(text) == one


@given(st.text())
def test_any_text_has_tokens_of_known_kinds(text):
    for token in tokenise(text):
        assert token in (WORD, NUMBER, STRING, *OPERATORS) or (token.isascii() and token.islower())


@given(st.text(alphabet="ab#/*\"'\\\n =:-.", max_size=60))
def test_names_do_not_matter(text):
    """Identifiers of the same shape give the same tokens."""
    assert tokenise(text.replace("a", "X").replace("b", "Y")) == tokenise(
        text.replace("a", "P").replace("b", "Q")
    )


def test_keywords_are_the_words_of_the_most_files():
    files = [["if", "if", "rare"], ["if", "for"], ["for", "if", "("], ["once"]]
    vocabulary = Vocabulary.learn(files, size=2, least=0.5)
    assert vocabulary.keywords == ("if", "for")
    assert Vocabulary.learn(files, size=1, least=0.5).keywords == ("if",)
    assert Vocabulary.learn(files, size=99, least=0.0).keywords == ("if", "for", "once", "rare")


def test_codes_leave_the_padding_out_and_fit_the_embedding():
    vocabulary = Vocabulary(["if", "for"])
    codes = vocabulary.encode(["if", "for", "other", WORD, NUMBER, STRING, *OPERATORS])
    assert codes.dtype == np.int32
    assert codes[2] == codes[3], "a word that is no keyword"
    assert PADDING not in codes
    assert max(codes) == len(vocabulary) - 1
    assert len(set(codes)) == len(vocabulary) - 1
