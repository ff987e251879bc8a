from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm.benchmarks.arrivals import ArrivalOptions
from vllm.benchmarks.datasets import Sample
from vllm.errors import ConfigError

COUNT = 40_000


def options(**values: Any) -> ArrivalOptions:
    ramp = {"ramp_up_strategy": "", "ramp_up_start_rps": None, "ramp_up_end_rps": None}
    return ArrivalOptions(**{**ramp, **values})


def gaps_s(count: int = COUNT, **values: Any) -> np.ndarray:
    return np.diff(options(**values).times_s([Sample("", 1, 1)] * count), prepend=0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_variance_of_the_burstiness(
    burstiness: float,
) -> None:
    gaps = gaps_s(request_rate=50.0, burstiness=burstiness, seed=3)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.var() == pytest.approx(1 / (50**2 * burstiness), rel=0.1)


def test_gaps_are_the_same_for_the_same_seed() -> None:
    first = gaps_s(9, request_rate=5.0, seed=1)
    assert (first == gaps_s(9, request_rate=5.0, seed=1)).all()
    assert (first != gaps_s(9, request_rate=5.0, seed=2)).any()


def test_without_a_rate_all_start_at_once_or_as_recorded() -> None:
    assert options().times_s([Sample("", 1, 1)] * 3) == [0.0, 0.0, 0.0]
    recorded = [Sample("", 1, 1, 0.0), Sample("", 1, 1, 2.5)]
    assert options().times_s(recorded) == [0.0, 2.5]
    assert options(request_rate=1000.0).times_s(recorded)[1] < 2.5


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_goes_from_one_rate_to_the_other(strategy: str) -> None:
    gaps = gaps_s(ramp_up_strategy=strategy, ramp_up_start_rps=1.0, ramp_up_end_rps=100.0)
    tenth = COUNT // 10
    middle = {"linear": 50.5, "exponential": 10.0}[strategy]
    around = gaps[COUNT // 2 - tenth // 10 : COUNT // 2 + tenth // 10]
    assert gaps[-tenth // 10 :].mean() == pytest.approx(1 / 100, rel=0.2)
    assert around.mean() == pytest.approx(1 / middle, rel=0.2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ramp_up_strategy": "linear"}, "needs --ramp-up-start-rps"),
        ({"ramp_up_start_rps": 1.0}, "need --ramp-up-strategy"),
        (
            {
                "ramp_up_strategy": "linear",
                "ramp_up_start_rps": 1.0,
                "ramp_up_end_rps": 2.0,
                "request_rate": 3.0,
            },
            "leave --request-rate 3 out",
        ),
    ],
)
def test_a_contradiction_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**values).check()
