"""Random search (Bergstra and Bengio 2012; section II.B of the paper): every trial is drawn by itself."""

from __future__ import annotations

from typing import Any

from coordinator.search.space import Space, sample


def propose(seed: int, trial: int, space: Space) -> dict[str, Any]:
    """Draws the parameters of a trial, as a function of the arguments alone.

    So a study is the same for the same seed, whatever order its trials finish in. ``seed`` and
    ``trial`` must not be negative (ValueError).
    """
    import numpy as np

    return sample(space, np.random.default_rng([seed, trial]))
