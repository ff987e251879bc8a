"""When requests start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm.benchmarks.datasets import Sample
from vllm.config.kinds import FLOAT, Kind
from vllm.config.option import option
from vllm.errors import ConfigError


def _rate(value: object) -> float:
    number = float(str(value))
    if not number > 0:
        raise ValueError(value)
    return number


RATE = Kind("a number above 0, or inf", _rate, _rate, "N")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalOptions:
    request_rate: float = option(
        float("inf"),
        kind=RATE,
        help="Requests per second; inf: all at once, or as a trace recorded them.",
    )
    burstiness: float = option(
        1.0,
        kind=RATE,
        help="Shape of the gamma distribution of gaps: 1 is a Poisson process, below 1 is "
        "burstier, above 1 more even.",
    )
    max_concurrency: int = option(0, low=0, help="Most requests open at a time; 0: no limit.")
    ramp_up_strategy: str = option(
        "",
        choices=("linear", "exponential"),
        auto="none",
        help="Change the request rate during the run.",
    )
    ramp_up_start_rps: float | None = option(
        None, kind=FLOAT, low=0.001, auto="none", help="Requests per second of the first requests."
    )
    ramp_up_end_rps: float | None = option(
        None, kind=FLOAT, low=0.001, auto="none", help="Requests per second of the last requests."
    )
    seed: int = option(0, low=0, help="Seed of prompts, of their order and of gaps.")

    def check(self) -> None:
        """Raises ConfigError for options that contradict each other."""
        ends = (self.ramp_up_start_rps, self.ramp_up_end_rps)
        if self.ramp_up_strategy:
            if None in ends:
                raise ConfigError(
                    f"--ramp-up-strategy {self.ramp_up_strategy}: needs --ramp-up-start-rps and "
                    "--ramp-up-end-rps."
                )
            if np.isfinite(self.request_rate):
                raise ConfigError(
                    f"--ramp-up-strategy {self.ramp_up_strategy}: leave --request-rate "
                    f"{self.request_rate:g} out; the ramp says the rate."
                )
        elif any(end is not None for end in ends):
            raise ConfigError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy.")

    def times_s(self, samples: Sequence[Sample]) -> list[float]:
        """Seconds after the start at which each request is due."""
        count = len(samples)
        if self.ramp_up_strategy:
            return _cumulated(self._ramp(count), self.burstiness, self.seed)
        if np.isfinite(self.request_rate):
            return _cumulated(np.full(count, self.request_rate), self.burstiness, self.seed)
        return [sample.at_s or 0.0 for sample in samples]

    def _ramp(self, count: int) -> np.ndarray:
        """The rate at which each request comes."""
        start, end = self.ramp_up_start_rps, self.ramp_up_end_rps
        assert start is not None and end is not None, (start, end)  # by `check`
        space = np.geomspace if self.ramp_up_strategy == "exponential" else np.linspace
        return space(start, end, count)


def _cumulated(rates: np.ndarray, burstiness: float, seed: int) -> list[float]:
    """Gamma distributed gaps of mean 1/rate and variance 1/(rate² · burstiness), summed."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.gamma(burstiness, 1 / (rates * burstiness))
    return [float(time_s) for time_s in np.cumsum(gaps_s)]
