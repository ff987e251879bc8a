"""The torch profiler of one rank: started and stopped from outside, a trace file per recording."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vllm.envs import Environment
from vllm.errors import NotAvailable
from vllm.logger import init_logger
from vllm.profiling.directory import trace_directory

logger = init_logger(__name__)


@dataclass(frozen=True, slots=True)
class TorchProfileSettings:
    directory: Path | None  # None: not set, so that nothing may be recorded
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = True
    with_flops: bool = False
    compresses: bool = True

    @classmethod
    def read(cls, env: Environment | None = None) -> TorchProfileSettings:
        env = env or Environment()
        return cls(
            directory=trace_directory(env),
            record_shapes=env.VLLM_TORCH_PROFILER_RECORD_SHAPES,
            profile_memory=env.VLLM_TORCH_PROFILER_WITH_PROFILE_MEMORY,
            with_stack=env.VLLM_TORCH_PROFILER_WITH_STACK,
            with_flops=env.VLLM_TORCH_PROFILER_WITH_FLOPS,
            compresses=env.VLLM_TORCH_PROFILER_USE_GZIP,
        )


class TorchProfile:
    """Used by the thread that runs the model: the profiler sees the ops of its own thread."""

    def __init__(
        self,
        settings: TorchProfileSettings,
        rank: int,
        activities: Sequence[torch.profiler.ProfilerActivity],
    ) -> None:
        self._settings = settings
        self._rank = rank
        self._activities = activities
        self._running: torch.profiler.profile | None = None
        self._started_s = 0.0

    def start(self) -> None:
        """Raises NotAvailable."""
        settings = self._settings
        if settings.directory is None:
            raise NotAvailable(
                "profiling is off: start the engine with VLLM_TORCH_PROFILER_DIR=<directory for "
                "the traces> to use it"
            )
        if self._running is not None:
            raise NotAvailable("a profile is being recorded already; stop that one first")
        profile = torch.profiler.profile(
            activities=self._activities,
            record_shapes=settings.record_shapes,
            profile_memory=settings.profile_memory,
            with_stack=settings.with_stack,
            with_flops=settings.with_flops,
        )
        profile.start()
        self._running, self._started_s = profile, time.monotonic()
        logger.info("Rank %d: recording a profile for %s", self._rank, settings.directory)

    def stop(self) -> str:
        """Ends the recording; -> path of its trace. Raises NotAvailable, OSError."""
        profile, self._running = self._running, None
        if profile is None:
            if self._settings.directory is None:
                raise NotAvailable(
                    "profiling is off, so there is no profile to stop: start the engine with "
                    "VLLM_TORCH_PROFILER_DIR=<directory for the traces> to use it"
                )
            raise NotAvailable("no profile is being recorded; start one first")
        profile.stop()
        recorded_s = time.monotonic() - self._started_s
        path = self._write(profile)
        logger.info("Rank %d: profile of %.1f s in %s", self._rank, recorded_s, path)
        return str(path)

    def close(self) -> None:
        """Keeps what is being recorded."""
        if self._running is not None:
            logger.warning("Rank %d: the engine ends while a profile is recorded", self._rank)
            self.stop()

    def _write(self, profile: torch.profiler.profile) -> Path:
        directory = self._settings.directory
        assert directory is not None
        suffix = ".gz" if self._settings.compresses else ""
        name = f"vllm-rank{self._rank}-{os.getpid()}.{time.time_ns()}.pt.trace.json{suffix}"
        # Half a trace must not look like one: viewers pick up whatever has this ending.
        unfinished = directory / f".unfinished-{name}"
        try:
            profile.export_chrome_trace(str(unfinished))
            unfinished.replace(directory / name)
        finally:
            unfinished.unlink(missing_ok=True)
        return directory / name
