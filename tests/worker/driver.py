"""Plays the scheduler in front of an executor: the plainest that keeps the contract of plans."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from tools.tiny_models import random_checkpoint
from vllm.config.expert_balance import ExpertBalanceConfig
from vllm.config.parallel import ParallelConfig
from vllm.executor.base import Executor, StepHandle
from vllm.messages.cache import KVCacheLayout, groups_by_needs
from vllm.messages.step import Admission, LogprobArrays, StepPlan, StepResult
from vllm.sampling_params import SamplingParams

BLOCK_SIZE = 16
MAX_MODEL_LEN = 96
NUM_BLOCKS = 200


@cache
def checkpoint(architecture: str) -> Path:
    """A random checkpoint, made once per test process."""
    path = Path(tempfile.mkdtemp(prefix="vllm-test-")) / architecture
    random_checkpoint.make(architecture, path, seed=3)
    return path


def make_config(path: Path, depth: int = 1) -> Any:
    hf_config = AutoConfig.from_pretrained(path)
    return SimpleNamespace(
        model=SimpleNamespace(
            model=str(path),
            path=path,
            hf_config=hf_config,
            architecture=hf_config.architectures[0],
            vocab_size=hf_config.vocab_size,
            dtype=torch.float32,
            max_model_len=MAX_MODEL_LEN,
            model_impl="auto",
            trust_remote_code=False,
            seed=0,
            eos_token_ids=frozenset(),
            logprobs_mode="raw_logprobs",
        ),
        cache=SimpleNamespace(block_size=BLOCK_SIZE, cache_dtype=torch.float32),
        scheduler=SimpleNamespace(
            max_num_seqs=8,
            max_num_batched_tokens=128,
            pipeline_depth=depth,
            logits_processors=(),
        ),
        parallel=ParallelConfig(
            distributed_executor_backend="uni",
            data_parallel_size_local=1,
            data_parallel_rank=0,
            data_parallel_address="127.0.0.1",
            all2all_backend="",
        ),
        device=SimpleNamespace(device="cpu", enforce_eager=False),
        load=SimpleNamespace(load_format="auto", ignore_patterns=(), use_tqdm_on_load=False),
        structured_outputs=SimpleNamespace(),
        observability=SimpleNamespace(),
        expert_balance=ExpertBalanceConfig(),
    )


@dataclass
class Sequence_:
    """One request; lengths run ahead of tokens while steps are in flight."""

    prompt: list[int]
    params: SamplingParams
    slot: int = 0
    planned: int = 0
    known: int = 0  # tokens drawn or about to be
    num_blocks: int = 0
    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: dict[int, LogprobArrays] = field(default_factory=dict)  # by first position
    logprobs: list[LogprobArrays] = field(default_factory=list)
    given: Mapping[int, int] = field(default_factory=dict)  # by position: what steps compute there


class Driver:
    """Runs requests to their max_tokens, `chunk` tokens of each per step, `depth` steps ahead."""

    def __init__(self, executor: Executor, depth: int, chunk: int = MAX_MODEL_LEN) -> None:
        self.executor = executor
        self.depth = depth
        self.chunk = chunk
        (facts,) = executor.start()
        self.facts = facts
        self.groups = groups_by_needs(facts.kv_specs)
        executor.bind_kv_cache(KVCacheLayout(NUM_BLOCKS, self.groups))
        self.next_block = NUM_BLOCKS - 1
        self.step = 0

    def run(
        self,
        requests: Sequence[tuple[list[int], SamplingParams]],
        given: Sequence[Mapping[int, int]] = (),
    ) -> list[Sequence_]:
        """Slots are given in order of arrival, from the highest block down.

        `given`: by request, token ids by position, which plans bring in place of drawn ones.
        """
        self.next_block = NUM_BLOCKS - 1
        sequences = [Sequence_(prompt, params) for prompt, params in requests]
        for sequence, tokens in zip(sequences, given, strict=False):
            sequence.given = tokens
        for slot, sequence in enumerate(sequences, start=1):
            sequence.slot, sequence.known = slot, len(sequence.prompt)
        admitted = False
        inflight: deque[tuple[StepHandle, list[tuple[Sequence_, bool]]]] = deque()
        while True:
            rows = self._rows(sequences) if len(inflight) < self.depth else []
            if rows:
                plan = self._plan(rows, () if admitted else sequences)
                admitted = True
                inflight.append(
                    (
                        self.executor.submit(plan),
                        [(s, drawn) for s, _, _, drawn in rows],
                    )
                )
            elif inflight:
                handle, owners = inflight.popleft()
                self._commit(handle.result(), owners)
            else:
                break
        self._release(sequences)
        return sequences

    def _rows(self, sequences: Sequence[Sequence_]) -> list[tuple[Sequence_, int, int, bool]]:
        rows = []
        for s in sequences:
            assert s.params.max_tokens is not None
            if s.known == len(s.prompt) + s.params.max_tokens:
                continue
            count = min(self.chunk, s.known - s.planned)
            rows.append((s, s.planned, count, s.planned + count == s.known))
            s.planned += count
            s.known += s.planned == s.known
        return rows

    def _plan(
        self, rows: list[tuple[Sequence_, int, int, bool]], admit: Sequence[Sequence_]
    ) -> StepPlan:
        blocks = []
        for s, start, count, _ in rows:
            while s.num_blocks * BLOCK_SIZE < start + count:
                for group in range(len(self.groups)):
                    blocks.append((s.slot, group, s.num_blocks, self.next_block))
                    self.next_block -= 1
                s.num_blocks += 1
        given = [
            (s.slot, position, s.given[position])
            for s, start, count, _ in rows
            for position in range(start, start + count)
            if position in s.given
        ]
        self.step += 1
        return StepPlan(
            step=self.step,
            slots=np.array([s.slot for s, *_ in rows], np.int32),
            starts=np.array([start for _, start, _, _ in rows], np.int32),
            counts=np.array([count for _, _, count, _ in rows], np.int32),
            samples=np.array([drawn for *_, drawn in rows], bool),
            releases=np.empty(0, np.int32),
            admissions=tuple(
                Admission(s.slot, "r", np.array(s.prompt, np.int32), len(s.prompt), s.params)
                for s in admit
            ),
            blocks=np.array(blocks, np.int32).reshape(-1, 4),
            given=np.array(given, np.int32).reshape(-1, 3),
        )

    def _commit(self, result: StepResult, owners: list[tuple[Sequence_, bool]]) -> None:
        drawn = [s for s, is_drawn in owners if is_drawn]
        for i, (s, token) in enumerate(zip(drawn, result.token_ids.tolist(), strict=True)):
            s.tokens.append(token)
            if result.logprobs is not None and s.params.logprobs is not None:
                values = result.logprobs
                one = LogprobArrays(values.token_ids[i], values.logprobs[i], values.ranks[i])
                s.logprobs.append(one)
        for entry in result.prompt_logprobs:
            owners[entry.row][0].prompt_logprobs[entry.start] = entry.values

    def _release(self, sequences: Sequence[Sequence_]) -> None:
        empty = np.empty(0, np.int32)
        self.step += 1
        plan = StepPlan(
            step=self.step,
            slots=empty,
            starts=empty,
            counts=empty,
            samples=np.empty(0, bool),
            releases=np.array([s.slot for s in sequences], np.int32),
            admissions=(),
            blocks=np.empty((0, 4), np.int32),
        )
        assert len(self.executor.submit(plan).result().token_ids) == 0
