"""How parameters are shared out over parameter servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nhop_models.runtime.parameters import shard_sizes


@given(st.integers(1, 10_000), st.integers(1, 8))
def test_shards_are_balanced_and_none_is_empty(size, shards):
    sizes = shard_sizes(size, shards)
    assert sum(sizes) == size
    assert len(sizes) == min(size, shards)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
