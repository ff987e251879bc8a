"""Prompts from files: ShareGPT-style conversations and custom JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vllm.benchmarks.datasets.codec import Codec
from vllm.benchmarks.datasets.options import DatasetOptions
from vllm.benchmarks.datasets.sample import Sample
from vllm.errors import ConfigError

# What vLLM's benchmark leaves out of ShareGPT, so that figures compare.
MIN_TOKENS = 4
MAX_PROMPT_TOKENS = 1024
MAX_TOKENS = 2048
T = TypeVar("T")


def sharegpt_samples(
    options: DatasetOptions, codec: Codec, rng: np.random.Generator
) -> list[Sample]:
    """The first turn of a conversation; as long an answer as its second."""
    name = options.dataset_path
    found: list[Sample] = []
    for prompt, answer in _in_order(list(_first_turns(_json(name), name)), options, rng):
        if len(found) == options.num_prompts:
            break
        num_prompt = len(codec.encode(prompt))
        max_tokens = options.sharegpt_output_len or len(codec.encode_plain(answer))
        is_short = num_prompt < MIN_TOKENS or max_tokens < MIN_TOKENS
        if options.sharegpt_output_len:
            is_short = num_prompt < MIN_TOKENS
        if is_short or num_prompt > MAX_PROMPT_TOKENS or num_prompt + max_tokens > MAX_TOKENS:
            continue
        found.append(Sample(prompt, num_prompt, max_tokens))
    if not found:
        raise ConfigError(
            f"--dataset-path {name}: no conversation of two turns with a prompt of {MIN_TOKENS} to "
            f"{MAX_PROMPT_TOKENS} tokens and at most {MAX_TOKENS} in all."
        )
    return _repeated(found, options)


def custom_samples(options: DatasetOptions, codec: Codec, rng: np.random.Generator) -> list[Sample]:
    """One JSON object per line: `prompt`, and `output_tokens` if it is not the same for all."""
    name = options.dataset_path
    rows = []
    for number, line in enumerate(_text(name).splitlines(), 1):
        if line.strip():
            rows.append(_custom_row(line, f"{name}, line {number}", options.custom_output_len))
    if not rows:
        raise ConfigError(f"--dataset-path {name}: the file has no rows.")
    rows = list(_in_order(rows, options, rng))[: options.num_prompts]
    return _repeated([Sample(text, len(codec.encode(text)), n) for text, n in rows], options)


def _custom_row(line: str, where: str, output_len: int) -> tuple[str, int]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--dataset-path {where}: is not JSON: {error}") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ConfigError(f"--dataset-path {where}: needs an object with a text as 'prompt'.")
    max_tokens = row.get("output_tokens", output_len)
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise ConfigError(f"--dataset-path {where}: output_tokens {max_tokens!r}: not from 1 on.")
    return prompt, max_tokens


def _first_turns(data: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(data, list):
        raise ConfigError(f"--dataset-path {name}: must hold a JSON list of conversations.")
    for index, entry in enumerate(data):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise ConfigError(f"--dataset-path {name}: entry {index} has no list 'conversations'.")
        if len(turns) < 2:
            continue
        try:
            yield str(turns[0]["value"]), str(turns[1]["value"])
        except (KeyError, TypeError):
            raise ConfigError(
                f"--dataset-path {name}: a turn of entry {index} has no 'value'."
            ) from None


def _in_order(rows: Sequence[T], options: DatasetOptions, rng: np.random.Generator) -> Iterator[T]:
    order = range(len(rows)) if options.disable_shuffle else rng.permutation(len(rows))
    return (rows[int(i)] for i in order)


def _repeated(samples: list[Sample], options: DatasetOptions) -> list[Sample]:
    if not options.oversample:
        return samples
    return [samples[i % len(samples)] for i in range(options.num_prompts)]


def _json(name: str) -> Any:
    try:
        return json.loads(_text(name))
    except ValueError as error:
        raise ConfigError(f"--dataset-path {name}: is not JSON: {error}") from None


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--dataset-path {name}: is not UTF-8: {error}") from None
