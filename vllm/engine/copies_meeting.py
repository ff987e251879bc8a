"""Where the ranks of copies meet that share experts, on this machine."""

from __future__ import annotations

from vllm.config.vllm import VllmConfig
from vllm.engine.core_handle import NO_MEETING, Meeting
from vllm.utils.unnamed_memory import UnnamedMemory


class CopiesMeeting:
    """A place for one life of all copies; nothing for copies that share no experts."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._memory = UnnamedMemory()
        self.place = NO_MEETING
        self.renew()

    def renew(self) -> None:
        """A place that nobody has met at; the one before is closed."""
        self.close()
        if not self._config.spreads_experts:
            return
        rendezvous, _ = self._memory.new("vllm-meeting")
        num_stages = self._config.parallel.pipeline_parallel_size
        memory = tuple(self._memory.new("vllm-experts")[0] for _ in range(num_stages))
        self.place = Meeting(rendezvous, memory)

    def close(self) -> None:
        """May be called again."""
        self._memory.close()
