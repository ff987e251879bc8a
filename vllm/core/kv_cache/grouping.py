"""group_layers: which layers share block tables, so that they waste little of the memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vllm.core.kv_cache.rules import ceil_div, rule_of
from vllm.messages.cache import AnySpec, BlockNeeds, KVGroup, groups_by_needs

# A group costs a block table, and host time per request and launch: it must save a part of the
# memory in return, about a twentieth where groups are few.
GROUP_COST: Final = 0.05
MOST_GROUPS: Final = 32


def group_layers(specs: Mapping[str, AnySpec], num_tokens: int) -> tuple[KVGroup, ...]:
    """Layers of equal needs, cut into groups: few of them, and with little waste.

    A block id stands for a block in every tensor, whichever group has it. So a block of a group
    with fewer layers than there are tensors wastes the rest. A sequence holds

        bytes per block of all tensors x blocks in all groups

    Small groups make the first factor small and the second large. The cut with the least product
    is taken, where each group counts as GROUP_COST of the bytes. The sequence has `num_tokens`
    tokens and decodes: the longer hold of a window during its prompt lasts for a few steps only.

    * 4 full and 20 sliding layers: 1 + 5 groups over 4 tensors, which wastes nothing.
    * 32 full layers and 1 with a short window: 1 + 1 groups over 32 tensors. That wastes 31/32 of
      the few blocks in the window, while 33 groups would take 33 entries per block of tokens.
    * 1 full layer and 32 with short windows: 1 + 16 groups over 2 tensors.
    * 36 layers of one width and 28 of another, all full: one group. Each has a tensor of its own.

    The ratio of window to sequence decides: 32 + 1 layers become 4 + 1 groups where the window is
    as long as the sequence, because 2 groups would waste half of the memory.
    """
    kinds = [_Kind.of(group, num_tokens) for group in groups_by_needs(specs)]
    return tuple(
        group
        for kind, num_groups in zip(kinds, _best_cut(kinds), strict=True)
        for group in kind.cut(num_groups)
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of equal needs."""

    needs: BlockNeeds
    layers: Mapping[str, AnySpec]
    num_alike: Mapping[tuple[int, ...], int]  # layers, by bytes of the parts of a block
    num_blocks: int  # that a sequence holds in each group

    @classmethod
    def of(cls, group: KVGroup, num_tokens: int) -> _Kind:
        rule = rule_of(group.needs, 0)
        held = rule.most_held(group.needs.max_blocks(num_tokens), max(0, num_tokens - 1), 1)
        parts = Counter(spec.parts for spec in group.layers.values())
        return cls(group.needs, group.layers, parts, held)

    def cuts(self) -> list[int]:
        """Numbers of groups worth a look: the least of each size of the groups."""
        least: dict[tuple[int, ...], int] = {}
        for num_groups in range(1, min(MOST_GROUPS, max(self.num_alike.values())) + 1):
            sizes = tuple(ceil_div(count, num_groups) for count in self.num_alike.values())
            least.setdefault(sizes, num_groups)
        return list(least.values())

    def cut(self, num_groups: int) -> list[KVGroup]:
        """Layers are dealt out in turn, so that each stage of a pipeline has a share of each."""
        groups = [KVGroup(self.needs, {}) for _ in range(num_groups)]
        num_dealt: Counter[tuple[int, ...]] = Counter()
        for name, spec in self.layers.items():
            groups[num_dealt[spec.parts] % num_groups].layers[name] = spec
            num_dealt[spec.parts] += 1
        return groups


def _best_cut(kinds: Sequence[_Kind]) -> tuple[int, ...]:
    """The number of groups of each kind. Kinds are few, so all combinations are looked at."""
    most = max(MOST_GROUPS, len(kinds))
    cuts = itertools.product(*(kind.cuts() for kind in kinds))
    return min(
        (cut for cut in cuts if sum(cut) <= most),
        key=lambda cut: ((1 + GROUP_COST * sum(cut)) * _held_bytes(kinds, cut), sum(cut)),
    )


def _held_bytes(kinds: Sequence[_Kind], cut: Sequence[int]) -> int:
    """Bytes that one sequence holds. Tensors are as in `KVCacheLayout.tensors`."""
    num_tensors: dict[tuple[int, ...], int] = {}
    num_blocks = 0
    for kind, num_groups in zip(kinds, cut, strict=True):
        num_blocks += num_groups * kind.num_blocks
        for parts, count in kind.num_alike.items():
            size = ceil_div(count, num_groups)
            num_tensors[parts] = max(size, num_tensors.get(parts, 0))
    return num_blocks * sum(sum(parts) * count for parts, count in num_tensors.items())
