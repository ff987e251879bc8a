"""From options to samples, the same for the same seed and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vllm.benchmarks.datasets.codec import Codec
from vllm.benchmarks.datasets.files import custom_samples, sharegpt_samples
from vllm.benchmarks.datasets.options import DatasetOptions
from vllm.benchmarks.datasets.sample import Sample
from vllm.benchmarks.datasets.synthetic import prefix_repetition_samples, random_samples
from vllm.benchmarks.datasets.trace import trace_samples
from vllm.errors import ConfigError

_OF_TOKENS: dict[str, Callable[..., list[Sample]]] = {
    "random": random_samples,
    "prefix_repetition": prefix_repetition_samples,
    "trace": trace_samples,
}
_OF_TEXT: dict[str, Callable[..., list[Sample]]] = {
    "sharegpt": sharegpt_samples,
    "custom": custom_samples,
}
_NEED_A_FILE = frozenset({"sharegpt", "custom", "trace"})


def load_samples(
    options: DatasetOptions, codec: Codec, vocabulary: Sequence[int], seed: int
) -> list[Sample]:
    """Raises ConfigError naming flag, file and line. Drawn tokens are of `vocabulary`."""
    name, path = options.dataset_name, options.dataset_path
    if name in _NEED_A_FILE and not path:
        raise ConfigError(f"--dataset-name {name}: needs --dataset-path FILE.")
    if name not in _NEED_A_FILE and path:
        raise ConfigError(f"--dataset-path {path}: --dataset-name {name} reads no file.")
    rng = np.random.default_rng(seed)
    try:
        if name in _OF_TOKENS:
            return _OF_TOKENS[name](options, vocabulary, rng)
        return _OF_TEXT[name](options, codec, rng)
    except OSError as error:
        raise ConfigError(f"--dataset-path {path}: {error.strerror or error}.") from None
