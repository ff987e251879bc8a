"""What benchmarks send: each dataset is a function from its options to samples."""

from __future__ import annotations

from vllm.benchmarks.datasets.load import load_samples
from vllm.benchmarks.datasets.options import DatasetOptions
from vllm.benchmarks.datasets.sample import Sample

__all__ = ["DatasetOptions", "Sample", "load_samples"]
