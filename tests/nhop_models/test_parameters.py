"""How weights are shared out over parameter servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nhop_models.runtime.parameters import assign_shards


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_every_weight_has_one_shard_and_none_is_empty(sizes, shards):
    members = assign_shards(sizes, shards)
    assert sorted(index for shard in members for index in shard) == list(range(len(sizes)))
    assert all(members)
    loads = [sum(sizes[index] for index in shard) for shard in members]
    assert max(loads) - min(loads) <= max(sizes)
