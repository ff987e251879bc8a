"""LLM: the engine for programs that have all their prompts at hand."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tqdm.auto import tqdm
from typing_extensions import Self

from vllm.beam_search import beam_search
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.front_end import raise_rejection
from vllm.engine.llm_engine import LLMEngine
from vllm.engine.older_arguments import refuse
from vllm.engine.processor import ProcessedRequest
from vllm.entrypoints.chat_utils import ContentFormat, Message, render_chat
from vllm.entrypoints.interrupts import DeferredInterrupt
from vllm.errors import BadRequest, NotAvailable
from vllm.inputs import ParsedPrompt, PromptType, parse_prompts
from vllm.metrics.reader import Metric
from vllm.outputs import BeamSearchOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from vllm.config.model import ModelConfig
    from vllm.executor.control import Method

Prompts = PromptType | Sequence[PromptType]
Params = SamplingParams | Sequence[SamplingParams]
Conversation = Sequence[Message]
# False: no bar; a callable makes one, with tqdm's parameters.
Progress = bool | Callable[..., Any]


class LLM:
    """A model and the engine that runs it. Used by one thread."""

    def __init__(self, model: str, tokenizer: str | None = None, **engine_args: Any) -> None:
        """`engine_args` are the settings of EngineArgs. Raises ConfigError, LoadError."""
        if tokenizer is not None:
            engine_args["tokenizer"] = tokenizer
        engine_args.setdefault("disable_log_stats", True)
        self._start(EngineArgs(model=model, **engine_args))

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> Self:
        llm = cls.__new__(cls)
        llm._start(engine_args)
        return llm

    def _start(self, engine_args: EngineArgs) -> None:
        self.llm_engine = LLMEngine.from_engine_args(engine_args)
        self._request_ids = map(str, itertools.count())

    @property
    def model_config(self) -> ModelConfig:
        return self.llm_engine.model_config

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.llm_engine.get_tokenizer()

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use another tokenizer from now on; its ids must be the model's."""
        self.llm_engine.front.set_tokenizer(tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's authors recommend."""
        return self.llm_engine.processor.default_params()

    def generate(
        self,
        prompts: Prompts | None = None,
        sampling_params: Params | None = None,
        *,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
        use_tqdm: Progress = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts, in any mixture of kinds; the outputs are in the order of the prompts.

        One SamplingParams counts for all prompts, a sequence has one for each. `priority`, lower
        first, counts under --scheduling-policy priority. `prompt_token_ids` is an older way to give
        prompts of token ids. Raises BadRequest before anything runs.
        """
        refuse(lora_request=lora_request)
        if (prompts is None) == (prompt_token_ids is None):
            raise BadRequest("give either prompts or prompt_token_ids", "prompts")
        if prompts is None:
            prompts = prompt_token_ids
        return self._run(self._process(parse_prompts(prompts), sampling_params, priority), use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | None = None,
        use_tqdm: Progress = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat | Literal["auto"] = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; see `generate`."""
        refuse(lora_request=lora_request, mm_processor_kwargs=mm_processor_kwargs or None)
        if chat_template_content_format not in ("auto", "string", "openai"):
            raise BadRequest(
                f"chat_template_content_format {chat_template_content_format!r}: must be auto, "
                "string or openai",
                "chat_template_content_format",
            )
        tokenizer = self.get_tokenizer()
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = []
        for conversation in conversations:
            rendered = render_chat(
                tokenizer,
                conversation,  # type: ignore[arg-type]
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
                content_format=chat_template_content_format,
            )
            if isinstance(rendered, str):
                # The template has written the special tokens.
                ids = tokenizer.encode(rendered, add_special_tokens=False)
                prompts.append(ParsedPrompt(rendered, ids))
            else:
                prompts.append(ParsedPrompt(None, rendered))
        return self._run(self._process(prompts, sampling_params, None), use_tqdm)

    def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: Progress = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The most likely continuations of each prompt, best first.

        `concurrency_limit` is the most prompts searched at the same time.
        """
        refuse(lora_request=lora_request)
        if not isinstance(params, BeamSearchParams):
            raise BadRequest(
                f"params must be BeamSearchParams, got a {type(params).__name__}", "params"
            )
        parsed = self._token_prompts(parse_prompts(prompts))
        batch = max(1, len(parsed)) if concurrency_limit is None else concurrency_limit
        if batch < 1:
            raise BadRequest(f"concurrency_limit must be >= 1, got {batch}", "concurrency_limit")
        outputs: list[BeamSearchOutput] = []
        with _ProgressBar(use_tqdm, len(parsed)) as bar:
            for begin in range(0, len(parsed), batch):
                found = beam_search(
                    parsed[begin : begin + batch], params, self.model_config, self._run_beams
                )
                bar.advance(len(found))
                outputs += found
        tokenizer = self.llm_engine.front.tokenizer
        if tokenizer is not None:
            for sequence in itertools.chain.from_iterable(o.sequences for o in outputs):
                sequence.text = str(tokenizer.decode(sequence.tokens))
        return outputs

    def _run_beams(
        self, prompts: list[ParsedPrompt], params: SamplingParams
    ) -> list[RequestOutput]:
        return self._run(self._process(prompts, params, None), use_tqdm=False)

    # -- control plane ----------------------------------------------------------------------------

    def reset_prefix_cache(self, device: Any = None) -> bool:
        """Forget cached prefixes; False while requests hold blocks. There is one `device`."""
        return self.llm_engine.reset_prefix_cache()

    def collective_rpc(
        self,
        method: Method,
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Run a method of the Worker on every rank; returns what each returned.

        "reload_weights" reads the weights again, from the checkpoint that args[0] names or by
        default the first one; call `reset_prefix_cache` afterwards. `method` may also be a
        function, called with the Worker and `args` and `kwargs`. Without the model in this process
        that needs VLLM_ALLOW_INSECURE_SERIALIZATION=1.
        """
        return self.llm_engine.collective_rpc(method, timeout, args, kwargs)

    def apply_model(self, func: Callable[[nn.Module], Any]) -> list[Any]:
        """Call `func` with each rank's model; returns what each call returned."""
        return self.llm_engine.apply_model(func)

    def sleep(self, level: int = 1) -> NoReturn:
        raise NotAvailable("sleep mode is not available yet; delete the LLM to free its memory")

    def wake_up(self, tags: list[str] | None = None) -> NoReturn:
        raise NotAvailable("sleep mode is not available yet, so there is nothing to wake up")

    def start_profile(self) -> None:
        """Start the torch profiler. Raises NotAvailable without VLLM_TORCH_PROFILER_DIR."""
        self.llm_engine.start_profile()

    def stop_profile(self) -> None:
        """Stop the torch profiler and write its traces. Raises NotAvailable."""
        self.llm_engine.stop_profile()

    def get_metrics(self) -> list[Metric]:
        """What a server's /metrics would show; needs disable_log_stats=False."""
        return self.llm_engine.get_metrics()

    # -- tasks of pooling models ------------------------------------------------------------------

    def encode(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable(_no_pooling("encode"))

    def embed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable(_no_pooling("embed"))

    def classify(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable(_no_pooling("classify"))

    def score(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable(_no_pooling("score"))

    def reward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable(_no_pooling("reward"))

    # -- requests ---------------------------------------------------------------------------------

    def _token_prompts(self, prompts: list[ParsedPrompt]) -> list[ParsedPrompt]:
        """The same prompts with their token ids, texts encoded together."""
        texts = [p.text for p in prompts if p.token_ids is None and p.text is not None]
        encoded = iter(self.llm_engine.processor.encode_all(texts))
        return [
            ParsedPrompt(p.text, next(encoded), p.cache_salt) if p.token_ids is None else p
            for p in prompts
        ]

    def _process(
        self,
        prompts: list[ParsedPrompt],
        sampling_params: Params | None,
        priority: Sequence[int] | None,
    ) -> list[ProcessedRequest]:
        params = _one_each("sampling_params", sampling_params, SamplingParams, len(prompts))
        for given in params:
            if given is not None and not isinstance(given, SamplingParams):
                raise BadRequest(
                    f"sampling_params must be SamplingParams, got a {type(given).__name__}",
                    "sampling_params",
                )
        priorities = _one_each("priority", priority, int, len(prompts))
        processor = self.llm_engine.processor
        requests = []
        for index, prompt in enumerate(self._token_prompts(prompts)):
            given = params[index]
            own = processor.default_params() if given is None else copy.copy(given)
            own.output_kind = RequestOutputKind.FINAL_ONLY
            request_id = next(self._request_ids)
            own_priority = 0 if priorities[index] is None else priorities[index]
            requests.append(processor.process(request_id, prompt, own, priority=own_priority))
        return requests

    def _run(self, requests: list[ProcessedRequest], use_tqdm: Progress) -> list[RequestOutput]:
        """Run requests to their end; an error or Ctrl-C ends all, and the engine stays usable."""
        engine = self.llm_engine
        done: dict[str, RequestOutput] = {}
        with DeferredInterrupt() as interrupt, _ProgressBar(use_tqdm, len(requests)) as bar:
            try:
                for request in requests:
                    engine.submit(request)
                while engine.has_unfinished_requests():
                    interrupt.check()
                    for output in engine.step():
                        raise_rejection(output)
                        if output.finished:
                            done[output.request_id] = output
                            bar.add(output)
            finally:
                engine.abort_all()
                engine.settle()
        return [done[request.request_id] for request in requests]


class _ProgressBar:
    """Requests done, and tokens per second of prompts and outputs."""

    def __init__(self, use_tqdm: Progress, total: int) -> None:
        self.bar = None
        if use_tqdm:
            make = use_tqdm if callable(use_tqdm) else tqdm
            self.bar = make(total=total, desc="Prompts", unit="req", dynamic_ncols=True)
        self.num_in = self.num_out = 0

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, output: RequestOutput) -> None:
        if self.bar is None:
            return
        self.num_in += len(output.prompt_token_ids)
        self.num_out += sum(len(choice.token_ids) for choice in output.outputs)
        elapsed_s = max(self.bar.format_dict["elapsed"], 1e-9)
        self.bar.set_postfix_str(
            f"in {self.num_in / elapsed_s:,.0f} tok/s, out {self.num_out / elapsed_s:,.0f} tok/s",
            refresh=False,
        )
        self.advance(1)

    def advance(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)


def _one_each(name: str, values: Any, kind: type, count: int) -> list[Any]:
    """`values` spread over `count` prompts: one for all, or one for each."""
    if values is None or isinstance(values, kind):
        return [values] * count
    if isinstance(values, Mapping | str | bytes) or not isinstance(values, Sized):
        raise BadRequest(
            f"{name} must be of {kind.__name__} or a list of them, got a {type(values).__name__}",
            name,
        )
    if len(values) != count:
        raise BadRequest(
            f"{name} has {len(values)} entries for {count} prompts; give one for each, or one for "
            "all",
            name,
        )
    return list(values)


def _no_pooling(name: str) -> str:
    return (
        f"LLM.{name} needs a pooling model, which this engine cannot run yet; it generates text: "
        "use LLM.generate or LLM.chat"
    )
