from __future__ import annotations

import torch

from vllm.platforms import platform_of
from vllm.platforms.cpu.peak import PeakTensorBytes
from vllm.worker.memory import activation_bytes, weight_bytes


def test_the_peak_counts_what_is_alive_at_the_same_time_and_no_views() -> None:
    given = torch.ones(1000)
    with PeakTensorBytes() as mode:
        for _ in range(5):
            doubled = given * 2  # 4000 bytes, and the last one is still alive
            doubled.view(10, 100).add_(1)
            given.narrow(0, 0, 10)
        del doubled
    assert mode.peak == 8000
    with PeakTensorBytes() as mode:
        given * 2
        given * 2
    assert mode.peak == 4000


def test_activation_bytes_grow_with_tokens_beyond_those_measured() -> None:
    runs: list[int] = []

    def compute(num_tokens: int) -> None:
        runs.append(num_tokens)
        torch.ones(100) + torch.ones(num_tokens, 50).sum()

    def run(num_tokens: int) -> tuple[int, int]:
        return num_tokens, platform_of("cpu").device(0).peak_bytes(lambda: compute(num_tokens))

    few, many = (activation_bytes(run, n, num_rows=2, vocab_size=10) for n in (200, 400))
    assert many - few == 200 * 50 * 4
    assert max(runs) < 200, "large steps are not run to be measured"
    assert few >= 200 * 50 * 4 + 2 * 10 * 4
    assert activation_bytes(run, 1, num_rows=1, vocab_size=10) > 0


def test_activation_bytes_are_the_same_where_steps_are_padded() -> None:
    def padded(num_tokens: int) -> tuple[int, int]:
        tokens = -(-num_tokens // 128) * 128
        return tokens, 1000 + 50 * tokens

    def exact(num_tokens: int) -> tuple[int, int]:
        return num_tokens, 1000 + 50 * num_tokens

    of_padded, of_exact = (activation_bytes(run, 512, 1, 10) for run in (padded, exact))
    assert of_padded == of_exact


def test_shared_weights_count_once() -> None:
    first, second = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    assert weight_bytes(torch.nn.ModuleList([first, second])) == 400
