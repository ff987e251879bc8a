"""The worker: one rank's process-level object, driven by an executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm.config.vllm import VllmConfig
from vllm.device.agreement import AgreedTokens
from vllm.device.observer import StepObserver, observer_of
from vllm.distributed.place import Place
from vllm.envs import Environment
from vllm.layers.cached_attention import Attention
from vllm.layers.dispatch import ExpertRanks
from vllm.loader import load_model, reload_weights
from vllm.logger import init_logger
from vllm.messages.cache import AnySpec, KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.shapes import ShapeUsage
from vllm.messages.step import StepPlan
from vllm.models.interfaces import Model
from vllm.ops.registry import resolve
from vllm.platforms import platform_of
from vllm.profiling.timeline import process_timeline
from vllm.profiling.torch_profile import TorchProfile, TorchProfileSettings
from vllm.worker import memory
from vllm.worker.assembly import LoadedRank, make_runner
from vllm.worker.caches import bind_caches, trial_layout
from vllm.worker.ends.launch_end import IdleAnswer, StepAnswer
from vllm.worker.model_runner import ModelRunner
from vllm.worker.step_log import step_logs
from vllm.worker.step_timeline import StepTimeline

logger = init_logger(__name__)


class Worker:
    """Loads the model on one device and runs plans on it.

    Call order: load, facts, bind_kv_cache, then execute and RPC methods in any number.
    """

    def __init__(self, config: VllmConfig, place: Place) -> None:
        self.config = config
        self.place = place
        self.platform = platform_of(config)
        self.platform.prepare_process(config, place)
        self.device = self.platform.device(place.local_rank)
        self.ops = resolve(self.platform.ops())
        self.torch_profile = TorchProfile(
            TorchProfileSettings.read(), place.rank, self.platform.profiler_activities()
        )
        self.collectives = self.platform.collectives(config, place)
        self.experts: ExpertRanks | None = None
        self.launching = self.collectives  # all ranks that take part in this one's launches
        if place.spreads_experts:
            self.launching = self.platform.expert_collectives(config, place)
            self.experts = ExpertRanks(self.launching, AgreedTokens())
        has_stages = place.pp.size > 1
        self.link = self.platform.stage_link(config, place) if has_stages else None
        self._all_observers = self._observers()
        self.observer = observer_of(self._all_observers)
        self._closing = ExitStack()

    def observe(self, observer: StepObserver) -> None:
        """Tell it, too, what the runner does. Before `bind_kv_cache`, which makes the runner."""
        self._all_observers.append(observer)
        self.observer = observer_of(self._all_observers)

    def where(self) -> str:
        """What this rank waits for from others, for people; "" if nothing. Any thread may ask."""
        link = "" if self.link is None else self.link.where()
        experts = "" if self.experts is None else self.launching.where()
        return self.collectives.where() or link or (experts and f"{experts} of all copies")

    def load(self) -> None:
        """Build the model and read its weights. Raises ConfigError and LoadError."""
        started = time.monotonic()
        with self.device.needing("the weights"):
            self.model: Model = load_model(
                self.config,
                self.platform,
                self.device.torch_device,
                self.collectives,
                self.place.pp,
                self.experts,
            )
        self.layers: Mapping[str, Attention] = self.model.attention_layers()
        self.load_s = time.monotonic() - started

    def reload_weights(self, weights_path: str | None = None) -> None:
        """Read the weights again, in place, from `weights_path`: by default what was loaded.

        Graphs stay valid. What the KV cache holds is of the old weights: reset the prefix cache.
        Raises LoadError; then the weights must be loaded again before they are used.
        """
        path = None if weights_path is None else Path(weights_path)
        reload_weights(self.model, self.config, path, self.place.rank)

    def facts(self) -> WorkerFacts:
        """Measure memory; runs the model on a few tokens."""
        specs = {name: layer.kv_spec() for name, layer in self.layers.items()}
        with self.device.needing("the largest step"):
            activation_bytes = self._measure_activations(specs)
        device_memory = self.device.memory()
        found = WorkerFacts(
            kv_specs=specs,
            weight_bytes=memory.weight_bytes(self.model),
            activation_bytes=activation_bytes,
            total_bytes=device_memory.total_bytes,
            free_bytes=device_memory.free_bytes,
            load_s=self.load_s,
            local_size=self.place.local_size,
        )
        # Copies that launch together prepare the same, for which they need caches of one size.
        return found if self.experts is None else memory.poorest(found, self.launching)

    def bind_kv_cache(self, layout: KVCacheLayout) -> None:
        """Allocate the cache of this rank's layers, build the runner, warm up.

        `layout` has the layers of all ranks.
        """
        own = layout.of(self.layers)
        with self.device.needing("the KV cache"):
            tensors = bind_caches(own, self.layers, self.device)
        max_num_seqs = self.config.scheduler.max_num_seqs
        self.runner = self._make_runner(own, tensors, max_num_seqs, self.observer)
        self.runner.balance.rehearse()
        self.platform.warm_up(self.config, self.runner, self.launching)
        self.runner.balance.begin()
        self.collectives.steps_begin()
        self.launching.steps_begin()
        self._closing.callback(self.runner.planner.close)
        self.device.synchronize()
        self.observer.warm_up_ends()

    def execute(self, plan: StepPlan) -> StepAnswer:
        answer = self.runner.execute(plan)
        return IdleAnswer(answer) if self.runner.agreement.is_idle else answer

    def profile(self, is_start: bool = True) -> str | None:
        """Start the torch profiler, or stop it; -> path of the trace. Raises NotAvailable."""
        if not is_start:
            return self.torch_profile.stop()
        self.torch_profile.start()
        return None

    def close(self) -> None:
        """End what records; in the thread that ran the steps."""
        try:
            self.torch_profile.close()
        except (OSError, RuntimeError):
            logger.exception("The profile of rank %d is lost", self.place.rank)
        self._closing.close()
        self.observer.close()

    def launch_shapes(self) -> list[ShapeUsage] | None:
        """What became of every prepared shape; None on devices that prepare none."""
        return self.observer.shapes()

    def ping(self) -> int:
        """This rank's number; the way to see that it answers."""
        return self.place.rank

    # What functions given to `collective_rpc` find in vLLM's workers.

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def local_rank(self) -> int:
        return self.place.local_rank

    @property
    def model_runner(self) -> ModelRunner:
        return self.runner

    def get_model(self) -> Model:
        return self.model

    def apply_model(self, function: Callable[[Model], Any]) -> Any:
        """function(model), for inspection."""
        with torch.inference_mode():
            return function(self.model)

    def _observers(self) -> list[StepObserver]:
        found = [
            *step_logs(Environment()),
            *self.platform.observers(self.config, self.device, self.place.rank),
        ]
        timeline = process_timeline()
        if timeline.is_on:
            # Innermost: what the others take is not the step's.
            found.append(StepTimeline(timeline, self.place.rank))
        return found

    def _measure_activations(self, specs: Mapping[str, AnySpec]) -> int:
        """Peak bytes of a full step, measured on one-block caches that only the dummy slot uses."""
        layout = trial_layout(specs)
        tensors = bind_caches(layout, self.layers, self.device)
        runner = self._make_runner(layout, tensors, max_num_seqs=1, observer=StepObserver())
        config = self.config

        def peak_of(num_tokens: int) -> tuple[int, int]:
            launch = runner.planner.rehearsal(num_tokens, config.model.max_model_len)
            return launch.num_tokens, self.device.peak_bytes(lambda: runner.rehearse(launch))

        return memory.activation_bytes(
            peak_of,
            num_tokens=config.scheduler.max_num_batched_tokens,
            num_rows=config.scheduler.max_num_seqs,
            vocab_size=config.model.vocab_size,
        )

    def _make_runner(
        self,
        layout: KVCacheLayout,
        tensors: Sequence[Tensor],
        max_num_seqs: int,
        observer: StepObserver,
    ) -> ModelRunner:
        rank = LoadedRank(
            self.config,
            self.place,
            self.platform,
            self.device,
            self.ops,
            self.model,
            self.layers,
            self.link,
            self.launching,
            self.experts,
        )
        return make_runner(rank, layout, tensors, max_num_seqs, observer)
