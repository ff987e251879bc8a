from prometheus_client.parser import text_string_to_metric_families

from vllm.messages.engine import EngineStats, FinishReason
from vllm.messages.facts import RankMemory
from vllm.metrics.families import series_1_2_5
from vllm.metrics.older_names import OLDER_NAMES
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.reader import Gauge, Histogram, read_metrics
from vllm.metrics.stats import FinishedCall, FinishedRequest, IterationStats


def samples(stats: PrometheusStats) -> dict[str, float]:
    families = text_string_to_metric_families(stats.exposition().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_gauges_show_the_last_state_and_counters_the_growth():
    stats = PrometheusStats("m", 100, [{"block_size": "16"}])
    stats.record(EngineStats(num_running=2, kv_usage=0.5, prefix_hits=10), IterationStats())
    stats.record(EngineStats(num_running=1, num_waiting=3, prefix_hits=15), IterationStats())
    now = samples(stats)
    assert now["vllm:num_requests_running"] == 1
    assert now["vllm:num_requests_waiting"] == 3
    assert now["vllm:kv_cache_usage_perc"] == 0
    assert now["vllm:prefix_cache_hits_total"] == 15
    assert now["vllm:cache_config_info"] == 1


def test_the_memory_of_every_rank_is_shown():
    stats = PrometheusStats("m", 100, [{}])
    stats.show_ranks([[RankMemory(5, 6, 7, 8), RankMemory(9, 6, 7, 8)]])
    text = stats.exposition().decode()
    name = 'vllm:rank_memory_bytes{engine="0",model_name="m",part='
    assert f'{name}"weights",rank="0"}} 5.0' in text
    assert f'{name}"weights",rank="1"}} 9.0' in text
    assert f'{name}"kv_cache",rank="1"}} 7.0' in text


def test_finished_requests_fill_the_histograms():
    stats = PrometheusStats("m", 100, [{}])
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
    assert series_1_2_5(30) == [1.0, 2.0, 5.0, 10.0, 20.0]
    assert series_1_2_5(1) == [1.0]


# The edges of vLLM 0.11, as its exposition writes them.
FIRST_TOKEN = (
    "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 "
    "160.0 640.0 2560.0"
)
TOKEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0"
REQUEST = (
    "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 "
    "1920.0 7680.0"
)
LENGTHS = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0"
STEP = "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0"
EDGES = {
    "vllm:time_to_first_token_seconds": FIRST_TOKEN,
    "vllm:inter_token_latency_seconds": TOKEN,
    "vllm:time_per_output_token_seconds": TOKEN,
    "vllm:request_time_per_output_token_seconds": TOKEN,
    "vllm:e2e_request_latency_seconds": REQUEST,
    "vllm:request_queue_time_seconds": REQUEST,
    "vllm:request_inference_time_seconds": REQUEST,
    "vllm:request_prefill_time_seconds": REQUEST,
    "vllm:request_decode_time_seconds": REQUEST,
    "vllm:request_prompt_tokens": LENGTHS,
    "vllm:request_generation_tokens": LENGTHS,
    "vllm:request_params_max_tokens": LENGTHS,
    "vllm:request_max_num_generation_tokens": LENGTHS,
    "vllm:request_prefill_kv_computed_tokens": LENGTHS,
    "vllm:request_params_n": "1.0 2.0 5.0 10.0 20.0",
    "vllm:iteration_tokens_total": STEP,
}


def test_every_histogram_has_the_edges_that_rules_for_vllm_name():
    exposition = PrometheusStats("m", 1024, [{}]).exposition().decode()
    edges = {
        family.name: " ".join(
            sample.labels["le"]
            for sample in family.samples
            if sample.name.endswith("_bucket") and sample.labels["le"] != "+Inf"
        )
        for family in text_string_to_metric_families(exposition)
        if family.type == "histogram"
    }
    assert edges == EDGES


def test_several_engines_share_a_process():
    first, second = (PrometheusStats(name, 10, [{}]) for name in "ab")
    first.record(EngineStats(num_running=4), IterationStats())
    assert samples(second)["vllm:num_requests_running"] == 0


def by_engine(stats: PrometheusStats, name: str) -> dict[str, float]:
    families = text_string_to_metric_families(stats.exposition().decode())
    return {
        sample.labels["engine"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_every_series_of_an_engine_has_its_number_among_all_copies():
    stats = PrometheusStats("m", 100, [{"blocks": "11"}, {"blocks": "12"}], first_engine=2)
    stats.show_ranks([[RankMemory(5, 6, 7, 8)], [RankMemory(9, 6, 7, 8)]])
    stats.silence.show([0.5, 1.5])
    done = FinishedRequest(FinishReason.STOP, 1.5, 0.1, 0.2, 0.7, 5, 8, 8)
    one = IterationStats([0.3], [0.1], [done], [FinishedCall(1, 8)], 5, 8)
    stats.record(EngineStats(num_running=1, prefix_hits=3), one, 0)
    stats.record(EngineStats(num_running=2, prefix_hits=4), IterationStats(), 1)
    for name, of_engines in {
        "vllm:num_requests_running": {"2": 1, "3": 2},
        "vllm:prefix_cache_hits_total": {"2": 3, "3": 4},
        "vllm:generation_tokens_total": {"2": 8, "3": 0},
        "vllm:time_to_first_token_seconds_count": {"2": 1, "3": 0},
        "vllm:e2e_request_latency_seconds_sum": {"2": 1.5, "3": 0},
        "vllm:request_params_n_count": {"2": 1, "3": 0},
        "vllm:engine_silence_seconds": {"2": 0.5, "3": 1.5},
        "vllm:cache_config_info": {"2": 1, "3": 1},
    }.items():
        assert by_engine(stats, name) == of_engines, name
    text = stats.exposition().decode()
    assert 'vllm:cache_config_info{blocks="12",engine="3"} 1.0' in text
    name = 'vllm:rank_memory_bytes{engine="3",model_name="m",part='
    assert f'{name}"weights",rank="0"}} 9.0' in text
    for family in text_string_to_metric_families(text):
        if family.name.startswith("vllm:"):
            assert {sample.labels["engine"] for sample in family.samples} == {"2", "3"}


def test_histograms_of_several_engines_are_read_apart():
    stats = PrometheusStats("m", 100, [{}, {}])
    stats.record(EngineStats(), IterationStats([0.3, 0.4]), 0)
    stats.record(EngineStats(), IterationStats([3.0]), 1)
    name = "vllm:time_to_first_token_seconds"
    first, second = (m for m in read_metrics(stats.registry) if m.name == name)
    assert (first.labels["engine"], first.count, first.buckets["0.5"]) == ("0", 2, 2)
    assert (second.labels["engine"], second.count, second.buckets["0.5"]) == ("1", 1, 0)


def test_counters_go_on_when_a_core_is_started_anew():
    stats = PrometheusStats("m", 100, [{}, {}])
    before = EngineStats(prefix_hits=9, num_preemptions=2, num_steps=4, num_generation_tokens=40)
    other = EngineStats(prefix_hits=100)
    after = EngineStats(prefix_hits=1, num_preemptions=3, num_steps=1, num_generation_tokens=6)
    for engine, core in ((before, 0), (other, 1), (after, 0), (other, 1)):
        stats.record(engine, IterationStats(), core)
    assert by_engine(stats, "vllm:prefix_cache_hits_total") == {"0": 10, "1": 100}
    assert by_engine(stats, "vllm:num_preemptions_total") == {"0": 5, "1": 0}
    assert by_engine(stats, "vllm:iteration_tokens_total_sum") == {"0": 46, "1": 0}
    assert by_engine(stats, "vllm:iteration_tokens_total_count") == {"0": 5, "1": 0}


def test_a_core_that_ended_has_neither_requests_nor_lost_its_counts():
    stats = PrometheusStats("m", 100, [{}])
    stats.record(EngineStats(num_running=3, prefix_hits=9, num_steps=4), IterationStats())
    stats.record(EngineStats(), IterationStats())
    assert samples(stats)["vllm:num_requests_running"] == 0
    assert samples(stats)["vllm:prefix_cache_hits_total"] == 9
    stats.record(EngineStats(prefix_hits=20, num_steps=8), IterationStats())
    assert samples(stats)["vllm:prefix_cache_hits_total"] == 29


def test_metrics_can_be_read_as_objects():
    stats = PrometheusStats("m", 100, [{"block_size": "16"}])
    done = FinishedRequest(FinishReason.STOP, 1.5, 0.1, 0.2, 0.7, 5, 8, 8)
    stats.record(
        EngineStats(num_running=2, num_preemptions=3), IterationStats([0.3, 0.4], [], [done])
    )
    found = {
        (metric.name, *sorted(metric.labels.values())): metric
        for metric in read_metrics(stats.registry)
    }
    assert found["vllm:num_requests_running", "0", "m"] == Gauge(
        "vllm:num_requests_running", {"model_name": "m", "engine": "0"}, 2.0
    )
    assert found["vllm:num_preemptions", "0", "m"].value == 3
    ttft = found["vllm:time_to_first_token_seconds", "0", "m"]
    assert isinstance(ttft, Histogram)
    assert (ttft.count, ttft.sum) == (2, 0.7)
    assert (ttft.buckets["0.25"], ttft.buckets["0.5"], ttft.buckets["+Inf"]) == (0, 2, 2)
    e2e = found["vllm:e2e_request_latency_seconds", "0", "m"]
    assert (e2e.count, e2e.sum) == (1, 1.5)


def test_a_step_counts_the_tokens_it_computed():
    stats = PrometheusStats("m", 100, [{}])
    for steps, prompt, generated in ((1, 10, 0), (1, 10, 0), (2, 12, 3), (4, 12, 7)):
        engine = EngineStats(
            num_steps=steps, num_prompt_tokens=prompt, num_generation_tokens=generated
        )
        stats.record(engine, IterationStats())
    now = samples(stats)
    assert now["vllm:iteration_tokens_total_count"] == 4
    assert now["vllm:iteration_tokens_total_sum"] == 19


def test_calls_are_counted_once_whatever_their_n():
    stats = PrometheusStats("m", 100, [{}])
    stats.record(EngineStats(), IterationStats(calls=[FinishedCall(3, 8), FinishedCall(1, 2)]))
    now = samples(stats)
    assert now["vllm:request_params_n_sum"] == 4
    assert now["vllm:request_max_num_generation_tokens_sum"] == 10


def test_older_names_show_the_same():
    stats = PrometheusStats("m", 100, [{}])
    engine = EngineStats(kv_usage=0.25, prefix_queries=9, prefix_hits=4)
    stats.record(engine, IterationStats(inter_token_s=[0.1, 0.2]))
    now = samples(stats)
    for new, old in OLDER_NAMES.items():
        same = {name.removeprefix(new): v for name, v in now.items() if name.startswith(new)}
        assert same == {n.removeprefix(old): v for n, v in now.items() if n.startswith(old)}
        assert any(same.values())
