"""The paper's RNN: which language a piece of source code is written in, from its delimiters and keywords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nhop_models import source_files
from nhop_models.base import Arrays, HyperParameters
from nhop_models.custom import CustomNN, data_location
from nhop_models.layers import as_list, dense_block
from nhop_models.source_files import SourceFile
from nhop_models.tokens import PADDING, Vocabulary, tokenise

if TYPE_CHECKING:
    import keras

Array = np.ndarray[Any, Any]

_WINDOW_STREAM = 6
_LEAST_SHARE = 0.03  # of the files: a word in fewer is no keyword


class SourceCodeRNN(CustomNN):
    """An embedding, one LSTM for each entry of ``rnn_state_dim``, and a softmax over the languages.

    A sample is ``rnn_max_seq_length`` tokens from a random place of a file. Other hyper-parameters,
    where ``search_space`` names them: ``embedding_dim`` (16), ``vocabulary_size`` (the most
    keywords, 96), ``windows_per_file`` (samples of a file to train on, 4), ``dropout`` before the
    last layer (none), and ``hidden_layers`` with ``activation`` for dense layers before it (none).
    """

    loss = "sparse_categorical_crossentropy"
    metrics = ("accuracy",)

    vocabulary: Vocabulary
    """What the tokens are coded by; learned in ``load_data`` from the files to train on alone."""

    def load_data(self, hp: HyperParameters) -> tuple[Arrays, Arrays]:
        """Reads ``load_data_dir``, a folder with one sub-folder for each language.

        Shapes: x (samples, rnn_max_seq_length) int32, codes of tokens, PADDING behind the end of
        short files; y (samples,) int32, the place of the language in ``classes``. Of every language
        a random fifth of the files is held out; each of these is one sample, so that accuracy on
        held-out data is the share of files that are told right from one random window.
        """
        files, self.classes, left_out = source_files.read_folder(data_location(hp))
        train, test = source_files.split(files, self.classes, seed=hp["seed"])
        self.vocabulary = Vocabulary.learn(
            (file.tokens for file in train), size=hp.get("vocabulary_size", 96), least=_LEAST_SHARE
        )
        length = hp["rnn_max_seq_length"]
        rng = np.random.default_rng([hp["seed"], _WINDOW_STREAM])
        data = (
            self._samples(train, length, hp.get("windows_per_file", 4), rng),
            self._samples(test, length, 1, rng),
        )
        trained, held_out = (Counter(file.language for file in side) for side in (train, test))
        counts = [f"{n} {trained[i]} + {held_out[i]}" for i, n in enumerate(self.classes)]
        print(f"files to train on + held out: {', '.join(counts)}")
        print(f"files left out: {source_files.describe(left_out)}")
        print(f"keywords: {' '.join(self.vocabulary.keywords)}", flush=True)
        self.input_shape = (length,)
        return data

    def build_model(self, hp: HyperParameters) -> keras.Model:
        """The stack of LSTMs; each but the last hands on its whole sequence."""
        import keras

        layers: list[Any] = [
            keras.layers.Input(self.input_shape, dtype="int32"),
            keras.layers.Embedding(len(self.vocabulary), hp.get("embedding_dim", 16), mask_zero=True),
        ]
        *stacked, last = as_list(hp["rnn_state_dim"])
        layers += [keras.layers.LSTM(units, return_sequences=True) for units in stacked]
        layers.append(keras.layers.LSTM(last))
        for nodes in hp.get("hidden_layers", ()):
            layers += dense_block(nodes, hp)
        if hp.get("dropout"):
            layers.append(keras.layers.Dropout(hp["dropout"]))
        layers.append(keras.layers.Dense(len(self.classes), activation="softmax"))
        return keras.Sequential(layers)

    def encode(self, text: str) -> Array:
        """The beginning of a text as the model takes it: (1, rnn_max_seq_length), int32."""
        return _padded(self.vocabulary.encode(tokenise(text)), self.input_shape[0])[None]

    def _samples(
        self, files: Sequence[SourceFile], length: int, windows: int, rng: np.random.Generator
    ) -> Arrays:
        x: list[Array] = []
        y: list[int] = []
        for file in files:
            codes = self.vocabulary.encode(file.tokens)
            for start in _starts(len(codes), length, windows, rng):
                x.append(_padded(codes[start:], length))
                y.append(file.language)
        return np.stack(x), np.array(y, np.int32)


def _starts(tokens: int, length: int, windows: int, rng: np.random.Generator) -> Iterator[int]:
    """Random places of ``windows`` samples that do not overlap, fewer where there is no room."""
    places = max(tokens // length, 1)
    first = int(rng.integers(0, max(tokens - places * length, 0) + 1))
    for place in rng.permutation(places)[:windows]:
        yield first + int(place) * length


def _padded(codes: Array, length: int) -> Array:
    padded = np.full(length, PADDING, np.int32)
    padded[: len(codes)] = codes[:length]
    return padded
