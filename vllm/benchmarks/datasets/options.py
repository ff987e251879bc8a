"""Which dataset, and its options."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.kinds import INT
from vllm.config.option import option

NAMES = ("random", "sharegpt", "prefix_repetition", "trace", "custom")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    dataset_name: str = option("random", choices=NAMES, help="Where requests come from.")
    dataset_path: str = option("", help="File of sharegpt (JSON), trace (CSV) or custom (JSONL).")
    num_prompts: int = option(1000, low=1, help="Requests to send; of a trace: its first ones.")
    oversample: bool = option(
        True, help="Repeat the rows of a file that has fewer than --num-prompts."
    )
    disable_shuffle: bool = option(False, help="Take the rows of a file in their order.")
    random_input_len: int = option(
        1024, low=1, aliases=("--input-len",), help="random: tokens of a prompt."
    )
    random_output_len: int = option(
        128, low=1, aliases=("--output-len",), help="random: tokens to generate."
    )
    random_range_ratio: float = option(
        0.0, low=0, high=0.999, help="random: lengths vary by up to this share, both ways."
    )
    random_prefix_len: int = option(
        0, low=0, help="random: tokens that all prompts begin with, besides --random-input-len."
    )
    sharegpt_output_len: int | None = option(
        None,
        kind=INT,
        low=1,
        auto="length of the answer in the file",
        help="sharegpt: tokens to generate.",
    )
    prefix_repetition_prefix_len: int = option(
        256, low=0, help="prefix_repetition: tokens of a prefix that several prompts share."
    )
    prefix_repetition_suffix_len: int = option(
        256, low=1, help="prefix_repetition: tokens of a prompt's own."
    )
    prefix_repetition_num_prefixes: int = option(
        10, low=1, help="prefix_repetition: different prefixes."
    )
    prefix_repetition_output_len: int = option(
        128, low=1, help="prefix_repetition: tokens to generate."
    )
    trace_speedup: float = option(
        1.0, low=0.001, help="trace: replay this many times faster than it was recorded."
    )
    trace_max_input_len: int = option(
        0, low=0, help="trace: cut longer prompts to this many tokens; 0: none."
    )
    trace_max_output_len: int = option(
        0, low=0, help="trace: cut longer answers to this many tokens; 0: none."
    )
    custom_output_len: int = option(
        256, low=1, help="custom: tokens to generate, where a row has no output_tokens."
    )
