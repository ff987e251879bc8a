"""The client for the cores that a configuration asks for."""

from __future__ import annotations

from vllm.config.vllm import VllmConfig
from vllm.engine.attached import AttachedClient, Attachment
from vllm.engine.attached_replicas import AttachedReplicas
from vllm.engine.client import EngineClient, ProcessClient
from vllm.engine.core_process import CoreMaker
from vllm.engine.own_replicas import OwnReplicas


def process_client(
    config: VllmConfig,
    make_core: CoreMaker | None = None,
    num_others: int = 0,
    wait: bool = True,
    ends_with_others: bool = False,
) -> ProcessClient | OwnReplicas:
    """Start the cores in processes of their own.

    Front end 0 of them is this process; `num_others` may attach themselves. Raises ConfigError,
    LoadError or EngineDeadError. `ends_with_others`: see OwnReplicas.
    """
    if config.restarts_cores:
        return OwnReplicas(config, make_core, num_others, wait, ends_with_others)
    return ProcessClient(config, make_core, num_others, wait)


def attached_client(config: VllmConfig, attachment: Attachment) -> EngineClient:
    """Use cores that another process has started. Raises EngineDeadError."""
    if config.restarts_cores:
        return AttachedReplicas(config, attachment)
    return AttachedClient(attachment)
