"""An engine that answers at once and exactly, to test the server's own behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from vllm.errors import EngineDeadError, NotAvailable
from vllm.inputs import TokensPrompt
from vllm.messages.engine import EngineReady
from vllm.messages.facts import RankMemory
from vllm.messages.shapes import ShapeUsage
from vllm.outputs import CompletionOutput, Logprob, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE)


READY = EngineReady(1, 16, 0.0, ranks=(RankMemory(1 << 28, 1 << 20, 1 << 30, 1 << 34),))


@dataclass
class FakeEngine:
    """Every sequence is `text`, a token per character, cut at max_tokens, `gap_s` apart."""

    tokenizer: PreTrainedTokenizerFast
    text: str = "and they lived happily."
    gap_s: float = 0.0
    dies_after: int = 1_000_000  # tokens
    may_go: asyncio.Event = field(default_factory=asyncio.Event)  # clear: no token comes
    raises: Exception | None = None
    trace_headers: Mapping[str, str] | None = None  # of the last request
    wanted_copy: int | None = None  # likewise
    late_prompt_logprobs: bool = False  # with the second token
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    seen: list[tuple[TokensPrompt, SamplingParams, int]] = field(default_factory=list)
    is_dead: bool = False
    silent_s: float = 0.0
    num_resets: int = 0
    is_profiled: bool = False
    shapes: list[ShapeUsage] = field(default_factory=list)
    client: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(cores=(READY,)))

    def __post_init__(self) -> None:
        self.may_go.set()

    async def check_health(self) -> None:
        if self.is_dead:
            raise EngineDeadError("the engine core is gone")

    async def reset_prefix_cache(self) -> bool:
        self.num_resets += 1
        return True

    async def is_hung(self) -> bool:
        return self.silent_s > 30

    def silences_s(self) -> list[float]:
        return [self.silent_s for _ in self.client.cores]

    async def launch_shapes(self) -> list[list[ShapeUsage]]:
        if self.is_dead:
            raise EngineDeadError("the engine core is gone")
        return [self.shapes for _ in self.client.cores]

    async def start_profile(self) -> None:
        if self.is_profiled:
            raise NotAvailable("a profile is being recorded already")
        self.is_profiled = True

    async def stop_profile(self) -> None:
        if not self.is_profiled:
            raise NotAvailable("no profile is being recorded")
        self.is_profiled = False

    async def generate(
        self,
        prompt: TokensPrompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        assert request_id not in self.running
        self.seen.append((prompt, sampling_params, priority))
        self.wanted_copy = data_parallel_rank
        self.trace_headers = trace_headers
        if self.raises is not None:
            raise self.raises
        self.running.add(request_id)
        try:
            async for output in self._outputs(prompt, sampling_params, request_id):
                yield output
        except GeneratorExit:
            self.aborted.append(request_id)
            raise
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.running.discard(request_id)

    async def _outputs(
        self, prompt: TokensPrompt, params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        ids = self.tokenizer.encode(self.text)[: params.max_tokens]
        reason = "length" if len(ids) == params.max_tokens else "stop"
        delta = params.output_kind is RequestOutputKind.DELTA
        for i in range(len(ids)):
            await asyncio.sleep(self.gap_s)
            await self.may_go.wait()
            if i >= self.dies_after:
                self.is_dead = True
                raise EngineDeadError("the engine core is gone")
            last = i == len(ids) - 1
            if not delta and not last:
                continue
            new = ids[i : i + 1] if delta else ids
            yield RequestOutput(
                request_id=request_id,
                prompt=prompt.get("prompt"),
                prompt_token_ids=prompt["prompt_token_ids"],
                prompt_logprobs=self._prompt_logprobs(prompt, params)
                if i == int(self.late_prompt_logprobs) or (last and not delta)
                else None,
                outputs=[
                    CompletionOutput(
                        index=sequence,
                        text=self.tokenizer.decode(new),
                        token_ids=new,
                        cumulative_logprob=None,
                        logprobs=None if params.logprobs is None else list(map(self._top2, new)),
                        finish_reason=reason if last else None,
                        stop_reason=None,
                    )
                    for sequence in range(params.n)
                ],
                finished=last,
                num_cached_tokens=2,
            )

    def _top2(self, token_id: int) -> dict[int, Logprob]:
        """The token and the next one, which is impossible."""
        other = (token_id + 1) % 256
        return {
            token_id: Logprob(-0.5, 1, self.tokenizer.decode([token_id])),
            other: Logprob(float("-inf"), 2, self.tokenizer.decode([other])),
        }

    def _prompt_logprobs(
        self, prompt: TokensPrompt, params: SamplingParams
    ) -> list[dict[int, Logprob] | None] | None:
        if params.prompt_logprobs is None:
            return None
        return [None, *map(self._top2, prompt["prompt_token_ids"][1:])]
