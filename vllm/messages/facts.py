"""What a rank tells of itself once its model is loaded."""

from __future__ import annotations

import msgspec

from vllm.messages.cache import AnySpec


class WorkerFacts(msgspec.Struct, frozen=True):
    """What a rank measured once its model was loaded."""

    kv_specs: dict[str, AnySpec]  # by layer name, in layer order
    weight_bytes: int
    activation_bytes: int  # peak of a full step, measured or estimated
    total_bytes: int  # of the device
    free_bytes: int  # after loading
    load_s: float
    local_size: int = 1  # ranks on its machine, of all copies of the model


class RankMemory(msgspec.Struct, frozen=True):
    """What the memory of a rank's device goes to, in bytes."""

    weights: int
    activations: int  # peak of a full step
    kv_cache: int
    device: int  # all there is; ranks of the CPU share it
