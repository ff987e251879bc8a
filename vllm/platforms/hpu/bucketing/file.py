"""Buckets from a text file, and back to one."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.axes import Limits
from vllm.platforms.hpu.bucketing.table import Bucket, is_prompt

logger = init_logger(__name__)

_LONGEST_RANGE: Final = 10_000
_MOST_COMBINATIONS: Final = 100_000
_MOST_NAMED: Final = 50  # buckets in a warning
_STAMPED_BLOCK_SIZE: Final = re.compile(r"^#.*--block-size (\d+)", re.MULTILINE)


def read_buckets(path: Path, limits: Limits) -> tuple[list[Bucket], list[Bucket]]:
    """Prompt and decode buckets of a file. Raises ConfigError if it cannot be read or has none.

    Each line is a tuple (rows, query length, blocks); an element is a number, a list of numbers or
    range(...), and a line stands for all combinations. Query length 1 means decode. What is behind
    a # is a comment. A line that cannot be read, or a bucket beyond the limits, is left out with a
    warning.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"VLLM_BUCKETING_FROM_FILE={path}: cannot be read: {error}") from None
    _warn_of_another_block_size(path, content, limits)
    prompt: set[Bucket] = set()
    decode: set[Bucket] = set()
    dropped: list[Bucket] = []
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            found = _parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            logger.warning_once(
                "%s, line %d is left out: %s: %s", path, number, line.strip()[:200], error
            )
            continue
        for bucket in found:
            _sort_in(bucket, limits, prompt, decode, dropped)
    if dropped:
        logger.warning_once(
            "%s: beyond the limits of this engine, and left out: %s. Prompt rows are limited by "
            "VLLM_PROMPT_BS_BUCKET_MAX (%d), decode rows by --max-num-seqs (%d).",
            path,
            [tuple(bucket) for bucket in sorted(set(dropped))[:_MOST_NAMED]],
            limits.max_prompt_rows,
            limits.max_num_seqs,
        )
    if not prompt or not decode:
        raise ConfigError(
            f"VLLM_BUCKETING_FROM_FILE={path}: Generated 0 {'decode' if prompt else 'prompt'} "
            "buckets. Add lines such as (1, 128, 0) and ([1, 8], 1, [128, 256])."
        )
    return sorted(prompt), sorted(decode)


def _sort_in(
    bucket: Bucket,
    limits: Limits,
    prompt: set[Bucket],
    decode: set[Bucket],
    dropped: list[Bucket],
) -> None:
    if not limits.has_cache:
        bucket = bucket._replace(blocks=0)
    rows, query_len, blocks = bucket
    if query_len > 1:
        (prompt.add if is_prompt(bucket, limits) else dropped.append)(bucket)
    elif rows > limits.max_num_seqs:
        dropped.append(bucket)
    elif not limits.has_cache or (limits.contiguous and 0 < blocks <= limits.num_blocks):
        decode.add(bucket)
    elif rows <= blocks and not limits.contiguous:
        decode.add(Bucket(rows, 1, min(blocks, rows * limits.blocks_per_row)))
    else:
        dropped.append(bucket)


def _parse(text: str) -> list[Bucket]:
    """Raises ValueError or SyntaxError, saying what is wrong."""
    node = ast.parse(text.rstrip(","), mode="eval").body
    if not isinstance(node, ast.Tuple) or len(node.elts) != 3:
        raise ValueError("a bucket is (rows, query length, blocks)")
    rows, query_lens, blocks = map(_numbers, node.elts)
    if len(rows) * len(query_lens) * len(blocks) > _MOST_COMBINATIONS:
        raise ValueError(f"a line has at most {_MOST_COMBINATIONS} combinations")
    if min(rows) < 1 or min(query_lens) < 1 or min(blocks) < 0:
        raise ValueError("rows and query length are at least 1, blocks at least 0")
    return [Bucket(*values) for values in itertools.product(rows, query_lens, blocks)]


def _numbers(node: ast.expr) -> list[int]:
    if isinstance(node, ast.Call):
        is_range = isinstance(node.func, ast.Name) and node.func.id == "range"
        if not is_range or node.keywords:
            raise ValueError("only range(...) can be called")
        values = range(*(_number(argument) for argument in node.args))
        if not 0 < len(values) <= _LONGEST_RANGE:
            raise ValueError(f"a range has 1 to {_LONGEST_RANGE} numbers, this one {len(values)}")
        return list(values)
    if isinstance(node, ast.List | ast.Tuple):
        found = [_number(element) for element in node.elts]
        if not found:
            raise ValueError("an empty list")
        return found
    return [_number(node)]


def _number(node: ast.expr) -> int:
    value = ast.literal_eval(node)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def write_buckets(path: Path, buckets: Iterable[Bucket], stamp: str) -> None:
    """`stamp` says where they come from; it becomes a comment. The file is replaced as a whole."""
    lines = [f"# {line}" for line in stamp.splitlines()]
    lines += [str(tuple(bucket)) for bucket in sorted(set(buckets))]
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _warn_of_another_block_size(path: Path, text: str, limits: Limits) -> None:
    stamped = _STAMPED_BLOCK_SIZE.search(text)
    if stamped and int(stamped[1]) != limits.block_size:
        logger.warning_once(
            "%s was made for --block-size %s: with %d its buckets are for other lengths.",
            path,
            stamped[1],
            limits.block_size,
        )
