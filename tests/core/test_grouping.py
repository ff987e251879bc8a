"""How layers are cut into groups, and which of them share tensors."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.core.kv_cache.grouping import GROUP_COST, MOST_GROUPS, group_layers
from vllm.core.kv_cache.rules import rule_of
from vllm.messages.cache import (
    MLA,
    AnySpec,
    BlockNeeds,
    FullAttention,
    KVCacheLayout,
    KVGroup,
    SlidingWindow,
)

FULL = FullAttention(16, 2, 32, 32, 2)
NARROW = FullAttention(16, 1, 32, 32, 2)
SLIDING = SlidingWindow(16, 2, 32, 32, 2, window_tokens=512)
LATENT = MLA(16, 96, 32, 2)  # as many bytes as FULL
LONG = 32768


def layers(*counts: tuple[AnySpec, int]) -> dict[str, AnySpec]:
    """Some layers of each kind, one kind after the other."""
    kinds = [spec for spec, count in counts for _ in range(count)]
    return {f"layer.{i}": spec for i, spec in enumerate(kinds)}


def sizes(groups: tuple[KVGroup, ...]) -> list[tuple[BlockNeeds, int]]:
    return [(group.needs, len(group.layers)) for group in groups]


def waste(groups: tuple[KVGroup, ...], num_tokens: int) -> float:
    """Share of the bytes of a decoding sequence in which no layer keeps anything."""
    held = [
        rule_of(group.needs, 0).most_held(group.needs.max_blocks(num_tokens), num_tokens - 1, 1)
        for group in groups
    ]
    used = sum(
        blocks * spec.bytes_per_block()
        for blocks, group in zip(held, groups, strict=True)
        for spec in group.layers.values()
    )
    return 1 - used / (sum(held) * KVCacheLayout(0, groups).bytes_per_block)


def test_one_kind_is_one_group() -> None:
    assert sizes(group_layers(layers((FULL, 61)), LONG)) == [(FULL.needs, 61)]


def test_no_layers_are_no_groups() -> None:
    assert group_layers({}, LONG) == ()
    layout = KVCacheLayout(0, ())
    assert layout.bytes_per_block == 0 and layout.tensors == []


@pytest.mark.parametrize("num_tokens", [128, 512, 2048, LONG])
def test_layers_that_divide_evenly_waste_nothing_at_any_length(num_tokens: int) -> None:
    groups = group_layers(layers((FULL, 4), (SLIDING, 20)), num_tokens)
    assert sizes(groups) == [(FULL.needs, 4)] + [(SLIDING.needs, 4)] * 5
    assert waste(groups, num_tokens) == 0
    assert len(KVCacheLayout(0, groups).tensors) == 4


@pytest.mark.parametrize("num_tokens", [128, LONG])
def test_alternating_layers_are_two_groups(num_tokens: int) -> None:
    specs = {str(i): spec for i, spec in enumerate(islice(cycle([SLIDING, FULL]), 26))}
    assert sizes(group_layers(specs, num_tokens)) == [(SLIDING.needs, 13), (FULL.needs, 13)]


def test_one_layer_apart_does_not_cut_the_others_apart() -> None:
    groups = group_layers(layers((FULL, 32), (SLIDING, 1)), LONG)
    assert sizes(groups) == [(FULL.needs, 32), (SLIDING.needs, 1)]
    assert waste(groups, LONG) < 0.02


def test_one_layer_apart_that_holds_as_much_cuts_the_others_a_little() -> None:
    """Two groups would waste half of the memory, and 33 groups nothing."""
    groups = group_layers(layers((FULL, 32), (SLIDING, 1)), 512)
    assert sizes(groups) == [(FULL.needs, 8)] * 4 + [(SLIDING.needs, 1)]
    assert waste(groups, 512) == pytest.approx(1 - 33 / 40)


def test_one_full_layer_does_not_cost_as_much_as_all_the_others() -> None:
    groups = group_layers(layers((FULL, 1), (SLIDING, 32)), LONG)
    assert sizes(groups) == [(FULL.needs, 1)] + [(SLIDING.needs, 2)] * 16
    assert waste(groups, LONG) == pytest.approx(0.4, abs=0.01)  # in two groups it would be 0.95


def test_layers_of_a_draft_model_of_another_width_join_the_group() -> None:
    groups = group_layers(layers((FULL, 36), (NARROW, 28)), LONG)
    assert sizes(groups) == [(FULL.needs, 64)]
    layout = KVCacheLayout(0, groups)
    assert layout.bytes_per_block == 36 * FULL.bytes_per_block() + 28 * NARROW.bytes_per_block()
    assert len(layout.tensors) == 64
    assert waste(groups, LONG) == 0


def test_latent_layers_and_others_have_groups_and_tensors_of_their_own() -> None:
    """Devices store the keys of all blocks before the values: a block lies elsewhere then."""
    assert LATENT.bytes_per_block() == FULL.bytes_per_block()
    layout = KVCacheLayout(0, group_layers(layers((LATENT, 27), (FULL, 4)), LONG))
    kinds = [{layout.groups[g].needs for g, _ in tensor.users} for tensor in layout.tensors]
    assert {frozenset(kind) for kind in kinds} == {
        frozenset({LATENT.needs}),
        frozenset({FULL.needs}),
    }
    assert waste(layout.groups, LONG) < 0.5


def test_layers_are_dealt_out_so_that_stages_have_as_many_of_each_group() -> None:
    specs = layers((FULL, 1), (SLIDING, 5)) | {
        f"later.{name}": spec for name, spec in layers((FULL, 1), (SLIDING, 5)).items()
    }
    layout = KVCacheLayout(0, group_layers(specs, LONG))
    first = layout.of([name for name in specs if not name.startswith("later")])
    assert [len(group.layers) for group in layout.groups] == [2] * 6
    assert [len(group.layers) for group in first.groups] == [1] * 6
    assert 2 * first.bytes_per_block == layout.bytes_per_block


@settings(max_examples=50, deadline=None)
@given(
    num_full=st.integers(1, 12),
    num_sliding=st.integers(1, 12),
    num_narrow=st.integers(0, 12),
    num_tokens=st.sampled_from([100, 2000, 100_000]),
)
def test_no_other_cut_is_better(
    num_full: int, num_sliding: int, num_narrow: int, num_tokens: int
) -> None:
    """Compared with every way to deal the layers of each kind out, by the tensors that it needs."""
    specs = layers((FULL, num_full), (SLIDING, num_sliding), (NARROW, num_narrow))

    def cost(groups: tuple[KVGroup, ...]) -> float:
        held = sum(
            rule_of(g.needs, 0).most_held(g.needs.max_blocks(num_tokens), num_tokens - 1, 1)
            for g in groups
        )
        return held * KVCacheLayout(0, groups).bytes_per_block * (1 + GROUP_COST * len(groups))

    def dealt(kinds: list[list[tuple[str, AnySpec]]], num_groups: int) -> list[KVGroup]:
        return [
            KVGroup(
                kinds[0][0][1].needs, dict(pair for kind in kinds for pair in kind[i::num_groups])
            )
            for i in range(num_groups)
        ]

    full, sliding, narrow = (
        [(name, spec) for name, spec in specs.items() if spec is kind]
        for kind in (FULL, SLIDING, NARROW)
    )
    best = min(
        cost((*dealt([full, narrow], n), *dealt([sliding], m)))
        for n in range(1, max(num_full, num_narrow) + 1)
        for m in range(1, num_sliding + 1)
    )
    assert cost(group_layers(specs, num_tokens)) == pytest.approx(best)


SPECS = st.sampled_from([FULL, NARROW, SLIDING, LATENT, SlidingWindow(16, 1, 32, 32, 2, 64)])


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(SPECS, max_size=40),
    num_tokens=st.sampled_from([1, 100, 4000, 100_000]),
    own=st.sets(st.integers(0, 39)),
)
def test_any_layers_are_shared_out_without_conflict(
    kinds: list[AnySpec], num_tokens: int, own: set[int]
) -> None:
    specs = {str(i): spec for i, spec in enumerate(kinds)}
    layout = KVCacheLayout(7, group_layers(specs, num_tokens))
    assert all(group.layers for group in layout.groups)
    assert len(layout.groups) <= MOST_GROUPS
    check(layout, specs)
    mine = {name: spec for name, spec in specs.items() if int(name) in own}
    part = layout.of(mine)
    assert [g.needs for g in part.groups] == [g.needs for g in layout.groups]
    assert part.bytes_per_block <= layout.bytes_per_block
    check(part, mine)


def check(layout: KVCacheLayout, specs: dict[str, AnySpec]) -> None:
    found = [(name, spec) for group in layout.groups for name, spec in group.layers.items()]
    assert sorted(found) == sorted(specs.items(), key=lambda item: item[0])
    for group in layout.groups:
        assert {spec.needs for spec in group.layers.values()} <= {group.needs}
    for tensor in layout.tensors:
        groups = [group for group, _ in tensor.users]
        assert len(set(groups)) == len(groups), "layers of one group share a tensor"
        parts = {layout.groups[group].layers[name].parts for group, name in tensor.users}
        assert [sum(some) for some in parts] == [tensor.bytes_per_block]
    users = [name for tensor in layout.tensors for _, name in tensor.users]
    assert sorted(users) == sorted(specs)
    assert layout.bytes_per_block == sum(tensor.bytes_per_block for tensor in layout.tensors)
    assert layout.bytes_per_block <= sum(spec.bytes_per_block() for spec in specs.values())
