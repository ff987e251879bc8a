from prometheus_client.parser import text_string_to_metric_families

from vllm.engine.messages import EngineStats, FinishReason
from vllm.metrics.prometheus import PrometheusStats, series_1_2_5
from vllm.metrics.stats import FinishedRequest, IterationStats


def samples(stats: PrometheusStats) -> dict[str, float]:
    families = text_string_to_metric_families(stats.exposition().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_gauges_show_the_last_state_and_counters_the_growth():
    stats = PrometheusStats("m", 100, {"block_size": "16"})
    stats.record(EngineStats(num_running=2, kv_usage=0.5, prefix_hits=10), IterationStats())
    stats.record(EngineStats(num_running=1, num_waiting=3, prefix_hits=15), IterationStats())
    now = samples(stats)
    assert now["vllm:num_requests_running"] == 1
    assert now["vllm:num_requests_waiting"] == 3
    assert now["vllm:kv_cache_usage_perc"] == 0
    assert now["vllm:prefix_cache_hits_total"] == 15
    assert now["vllm:cache_config_info"] == 1


def test_finished_requests_fill_the_histograms():
    stats = PrometheusStats("m", 100, {})
    done = FinishedRequest(FinishReason.LENGTH, 1.0, 0.1, 0.2, 0.7, 5, 8, 8)
    stats.record(
        EngineStats(),
        IterationStats([0.3], [0.1, 0.1], [done], num_prompt_tokens=5, num_generation_tokens=8),
    )
    now = samples(stats)
    assert now["vllm:prompt_tokens_total"] == 5
    assert now["vllm:generation_tokens_total"] == 8
    assert now["vllm:time_to_first_token_seconds_count"] == 1
    assert now["vllm:inter_token_latency_seconds_count"] == 2
    assert now["vllm:e2e_request_latency_seconds_sum"] == 1.0
    assert now["vllm:request_inference_time_seconds_sum"] == 0.7 + 0.2
    assert now["vllm:request_time_per_output_token_seconds_sum"] == 0.7 / 7
    assert 'finished_reason="length",model_name="m"} 1.0' in stats.exposition().decode()


def test_bounds_follow_1_2_5():
    assert series_1_2_5(0.1, 3) == [0.1, 0.2, 0.5, 1.0, 2.0]
    assert series_1_2_5(1, 1) == [1.0]


def test_several_engines_share_a_process():
    first, second = (PrometheusStats(name, 10, {}) for name in "ab")
    first.record(EngineStats(num_running=4), IterationStats())
    assert samples(second)["vllm:num_requests_running"] == 0
