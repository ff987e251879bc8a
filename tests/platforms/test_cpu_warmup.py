from __future__ import annotations

import pytest

from vllm.device.launch import Launch, Phase
from vllm.device.planner import UnifiedPlanner
from vllm.platforms.cpu.warmup import warm_up
from vllm.worker.slots import DUMMY_SLOT


def run_warm_up(cost_s: float, slowest_s: float = 0.0) -> list[Launch]:
    """Launches of a warm-up of a model that takes `cost_s` for a short prefill.

    The slowest rank takes `slowest_s`.
    """
    launches: list[Launch] = []
    now_s = 0.0

    def run(launch: Launch) -> None:
        nonlocal now_s
        launches.append(launch)
        if launch.key.phase is not Phase.DECODE:
            now_s += cost_s

    sizes = {"max_rows": 4, "max_tokens": 500, "max_row_tokens": 200, "block_size": 16}
    warm_up(run, lambda mine_s: max(mine_s, slowest_s), **sizes, clock=lambda: now_s)
    return launches


@pytest.mark.parametrize(
    ("cost_s", "tokens"), [(0.0, [1, 8, 4, 500]), (0.02, [1, 8, 4]), (0.3, [1, 8])]
)
def test_warm_up_leaves_out_large_launches_that_would_take_long(
    cost_s: float, tokens: list[int]
) -> None:
    launches = run_warm_up(cost_s)
    assert [launch.num_tokens for launch in launches] == tokens
    assert all((launch.slots_np == DUMMY_SLOT).all() for launch in launches)


def test_all_ranks_go_by_the_slowest() -> None:
    fast, slow = run_warm_up(0.0, slowest_s=0.3), run_warm_up(0.3)
    assert [a.num_tokens for a in fast] == [b.num_tokens for b in slow] == [1, 8]


def test_a_dummy_launch_keeps_rows_within_the_model_length() -> None:
    launch = UnifiedPlanner(16).rehearsal(500, max_row_tokens=200)
    assert launch.counts_np.tolist() == [200, 200, 100]
    assert launch.positions_np.max() == 199
