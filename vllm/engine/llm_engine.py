"""LLMEngine: requests in, outputs of each step out, for callers that drive the steps themselves."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from typing_extensions import Self

from vllm import envs
from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.client import EngineClient, InProcessClient
from vllm.engine.clients import process_client
from vllm.engine.front_end import FrontEnd, values_of
from vllm.engine.older_arguments import refuse, with_keywords
from vllm.engine.processor import ProcessedRequest, Processor
from vllm.errors import ConfigError, EngineDeadError, NotAvailable
from vllm.messages.engine import CallResult, StepUpdates
from vllm.messages.shapes import ShapeUsage
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.reader import Metric, read_metrics
from vllm.metrics.stats import StatLogger
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.tokenizer import full_tokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from vllm.config.model import ModelConfig
    from vllm.executor.control import Method


class LLMEngine:
    """Used by one thread."""

    def __init__(self, config: VllmConfig, client: EngineClient) -> None:
        self.vllm_config = config
        self.client = client
        self.front = FrontEnd(config, client)
        self.metrics: PrometheusStats | None = None  # None: nobody keeps any
        self._steps: deque[StepUpdates] = deque()
        self._results: dict[int, list[CallResult]] = {}

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: VllmConfig,
        usage_context: Any = None,
        stat_loggers: None = None,
        *,
        enable_multiprocessing: bool = False,
    ) -> Self:
        """The core runs in this process, or with VLLM_ENABLE_V1_MULTIPROCESSING in its own.

        Nobody collects usage, whatever `usage_context`.
        """
        refuse(stat_loggers=stat_loggers)
        is_remote = enable_multiprocessing or envs.VLLM_ENABLE_V1_MULTIPROCESSING
        if is_remote and vllm_config.parallel.is_externally_launched:
            raise ConfigError(
                "VLLM_ENABLE_V1_MULTIPROCESSING=1 with --distributed-executor-backend "
                "external_launcher: the engine runs in the processes that torchrun has started. "
                "Unset the variable, or set it to 0."
            )
        # Each copy of the model computes in a process of its own, or one would wait for the other.
        is_remote = is_remote or vllm_config.restarts_cores
        client: EngineClient
        if is_remote:
            # Programs with copies that share experts need each other until none generates any more.
            parallel = vllm_config.parallel
            is_one_of_several = parallel.served_copies < parallel.data_parallel_size
            client = process_client(vllm_config, ends_with_others=is_one_of_several)
        else:
            client = InProcessClient(vllm_config)
        engine = cls(vllm_config, client)
        engine.front.log_statistics()
        if not vllm_config.observability.disable_log_stats:
            engine.metrics = PrometheusStats.of(vllm_config, engine.client.cores)
            engine.add_stat_logger(engine.metrics)
        return engine

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        usage_context: Any = None,
        stat_loggers: None = None,
        enable_multiprocessing: bool = False,
    ) -> Self:
        """As `from_vllm_config`."""
        return cls.from_vllm_config(
            engine_args.create_engine_config(),
            usage_context,
            stat_loggers,
            enable_multiprocessing=enable_multiprocessing,
        )

    @property
    def model_config(self) -> ModelConfig:
        return self.vllm_config.model

    @property
    def processor(self) -> Processor:
        return self.front.processor

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises NotAvailable with --skip-tokenizer-init."""
        return full_tokenizer(self.front.need_tokenizer())

    def get_model_config(self) -> ModelConfig:
        return self.model_config

    def get_vllm_config(self) -> VllmConfig:
        return self.vllm_config

    def add_stat_logger(self, stat_logger: StatLogger) -> None:
        self.front.stat_loggers.append(stat_logger)

    def get_metrics(self) -> list[Metric]:
        """Raises NotAvailable where --disable-log-stats keeps none."""
        if self.metrics is None:
            raise NotAvailable(
                "this engine keeps no metrics: construct it with disable_log_stats=False, which "
                "for LLM is not the default"
            )
        if self.client.cores[0].counts_shapes:
            shapes = msgspec.convert(self.call("launch_shapes"), list[list[ShapeUsage]])
            self.metrics.shapes.show(shapes)
        return read_metrics(self.metrics.registry)

    def get_num_unfinished_requests(self) -> int:
        return len(self.front.output_processor.requests)

    def has_unfinished_requests(self) -> bool:
        return self.front.output_processor.has_requests

    def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | None = None,
        arrival_time: float | None = None,
        lora_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> None:
        """Queue a request; `prompt` in any form of vllm.inputs. Raises BadRequest, and NotAvailable
        for what `older_arguments` says more of."""
        refuse(
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs or None,
            prompt_text=prompt_text,
        )
        self.submit(
            self.processor.process(
                request_id,
                prompt,
                params,
                priority=priority,
                arrival_time_s=arrival_time,
                trace_headers=trace_headers,
            )
        )

    def submit(self, request: ProcessedRequest) -> None:
        self.front.submit(request)

    def step(self) -> list[RequestOutput]:
        """Outputs of the next step; [] at once when there are no requests."""
        if not self.has_unfinished_requests():
            return []
        while not self._steps:
            self._receive()
        return self.front.process(self._steps.popleft())

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests; ids that have ended already are no error."""
        self.front.abort([request_ids] if isinstance(request_ids, str) else request_ids)

    def abort_all(self) -> None:
        self.front.abort(list(self.front.output_processor.requests))

    def settle(self) -> None:
        """Let the core finish what nobody waits for any more, so that it holds no blocks."""
        if not self.has_unfinished_requests():
            self.client.settle()

    def call(self, method: str, *args: Any) -> list[Any]:
        """Run a control-plane method of the cores, after the messages sent so far; returns what it
        returned, by core."""
        call_id = self.front.call(method, args)
        while call_id not in self._results:
            self._receive()
        return values_of(self._results.pop(call_id))

    def collective_rpc(
        self,
        method: Method,
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """As LLM.collective_rpc."""
        if timeout is not None:
            raise NotAvailable("collective_rpc has no timeout; leave it out", "timeout")
        by_core = self.call("collective_rpc", with_keywords(method, kwargs), *args)
        return list(itertools.chain.from_iterable(by_core))

    def apply_model(self, func: Callable[[nn.Module], Any]) -> list[Any]:
        """Call `func` with each rank's model; returns what each call returned."""
        return self.collective_rpc("apply_model", args=(func,))

    def is_sleeping(self) -> bool:
        """There is no sleep mode yet."""
        return False

    def reset_prefix_cache(self, device: Any = None) -> bool:
        """Forget cached prefixes; False while requests hold blocks. There is one `device`."""
        return all(self.call("reset_prefix_cache"))

    def start_profile(self) -> None:
        """Start the torch profiler. Raises NotAvailable without VLLM_TORCH_PROFILER_DIR."""
        self.call("profile", True)

    def stop_profile(self) -> None:
        """Stop the torch profiler and write its traces. Raises NotAvailable."""
        self.call("profile", False)

    def shutdown(self) -> None:
        self.client.stop()
        self.client.close()
        self.front.close()

    def _receive(self) -> None:
        try:
            message = self.client.receive()
        except EngineDeadError:
            self.front.output_processor.abort(list(self.front.output_processor.requests))
            raise
        if message is None:
            raise EngineDeadError("the engine was shut down")
        if isinstance(message, CallResult):
            results = self.front.answered(message)
            if results is not None:
                self._results[message.call_id] = results
        else:
            assert isinstance(message, StepUpdates), message
            self._steps.append(message)
