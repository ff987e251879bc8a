"""The simulation of benchmarks/balance.py, and counters that benchmarks/conversations.py reads."""

from __future__ import annotations

import pytest

from benchmarks import balance, conversations


def test_conversations_find_more_in_caches_where_a_core_is_chosen_by_them() -> None:
    args = balance.parse(["--seconds", "12", "--seeds", "1", "--scale", "0.4", "--blocks", "1500"])
    args.open_tokens = 100
    by_cache, by_count = (
        balance.simulate(args, "conversations", rule, seed=0) for rule in ("cache", "least")
    )
    assert by_cache.num_requests > 40
    assert by_cache.hit_rate > by_count.hit_rate + 0.1
    assert by_cache == balance.simulate(args, "conversations", "cache", seed=0)


@pytest.mark.parametrize("load", balance.LOADS)
def test_every_load_comes_to_answers(load: str) -> None:
    words = ["--load", load, "--rule", "cache", "--seconds", "8", "--seeds", "1", "--scale", "0.3"]
    _, line = balance.lines(balance.parse([*words, "--front-ends", "2"]))
    assert line.split()[0] == load
    assert int(line.split()[-1]) > 3


def test_counters_are_those_of_all_cores() -> None:
    text = """# HELP vllm:prefix_cache_hits_total Prompt tokens found in the prefix cache
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 1e+03
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 40.0
vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 40.0
"""
    assert conversations.COUNTER.findall(text) == [
        ("queries", "100.0"),
        ("queries", "1e+03"),
        ("hits", "40.0"),
    ]
