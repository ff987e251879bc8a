"""Environment variables of features to come: the default is accepted, anything else refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm.envs import Environment
from vllm.errors import ConfigError

# By what a variable's default means, all words that say the same.
OFF: Final = frozenset({"0", "false", "no", "off"})
ON: Final = frozenset({"1", "true", "yes", "on"})
UNSET: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class UnavailableVariable:
    name: str
    neutral: frozenset[str]  # texts in lower case that ask for nothing
    feature: str  # what is missing, as the subject of "... is not available"
    remedy: str = ""

    def check(self, env: Environment) -> None:
        """Raises ConfigError unless the variable is unset or asks for nothing."""
        text = env.text(self.name)
        if not text or text.lower() in self.neutral:
            return
        raise ConfigError(
            f"environment variable {self.name}={text}: {self.feature} is not available yet in this "
            f"build. {self.remedy or f'Unset {self.name}.'}"
        )


def _rows(
    feature: str, remedy: str = "", **variables: frozenset[str]
) -> tuple[UnavailableVariable, ...]:
    return tuple(
        UnavailableVariable(name, neutral, feature, remedy) for name, neutral in variables.items()
    )


def _just(*texts: str) -> frozenset[str]:
    return frozenset(texts)


UNAVAILABLE_VARIABLES: Final[tuple[UnavailableVariable, ...]] = (
    *_rows(
        "quantization",
        QUANT_CONFIG=UNSET,
        HPU_ALIGNED_SCALE=OFF,
        VLLM_DISABLE_MARK_SCALES_AS_CONST=OFF,
        VLLM_DYNAMIC_KV_QUANT=OFF,
        VLLM_HPU_CONVERT_TO_FP8UZ=OFF,
        VLLM_HPU_FORCE_CHANNEL_FP8=ON,
        VLLM_SCALE_ADJUSTMENT=ON,
    ),
    *_rows(
        "input other than text",
        VLLM_MM_WARMUP_OUTSIDE_COMPILE_ONLY=OFF,
        VLLM_MULTIMODAL_BUCKETS=_just("none"),
        VLLM_MULTIMODAL_RESOLUTIONS=UNSET,
    ),
    *_rows(
        "the transfer of KV cache between engines",
        VLLM_HPU_HETERO_KV_LAYOUT=OFF,
        VLLM_HPU_NIXL_JOINT_KV=OFF,
        VLLM_HPU_NIXL_STAGING_SLOTS=_just("0"),
        VLLM_NIXL_ABORT_REQUEST_TIMEOUT=_just("300"),
        VLLM_NIXL_SIDE_CHANNEL_HOST=_just("localhost"),
        VLLM_NIXL_SIDE_CHANNEL_PORT=_just("5600"),
    ),
    *_rows("a cache for state-space models", VLLM_COMPACT_GDN=OFF),
    *_rows(
        "changing the model of a running process",
        "Start a server per model.",
        VLLM_HPU_MULTI_MODEL_CONFIG=UNSET,
    ),
    *_rows(
        "packing several prompts into one row of a prefill",
        "Prompts share a launch as rows: VLLM_PROMPT_BS_BUCKET_MAX says how many.",
        VLLM_MERGED_PREFILL=OFF,
    ),
    *_rows(
        "running without buckets",
        "VLLM_SKIP_WARMUP=1 starts without compiling for them.",
        VLLM_ENABLE_BUCKETING=ON,
    ),
    *_rows(
        "profiling of single buckets",
        "VLLM_TORCH_PROFILER_DIR and VLLM_PROFILER_ENABLED profile what is running.",
        VLLM_PT_PROFILE=UNSET,
        VLLM_PROFILE_PROMPT=UNSET,
        VLLM_PROFILE_DECODE=UNSET,
        VLLM_PROFILE_STEPS=UNSET,
    ),
    *_rows("ALiBi", VLLM_ALIBI_USE_FLOAT32_BIASES=ON),
    *_rows(
        "an imitation of the device inside the engine",
        "Install the emulator of tools/hpu_emulator, which the engine takes for a device.",
        VLLM_USE_FAKE_HPU=OFF,
    ),
    *_rows(
        "another way of placing copies in a Ray cluster than filling machine after machine",
        "--data-parallel-size-local says how many the server's machine has.",
        VLLM_RAY_DP_PACK_STRATEGY=_just("fill"),
    ),
    *_rows("a mode for developers of the device", VLLM_DEVELOPER_MODE=OFF),
)


def check_all(env: Environment) -> None:
    """Raises ConfigError if a variable asks for something this build lacks."""
    for row in UNAVAILABLE_VARIABLES:
        row.check(env)


NAMES: Final = frozenset(row.name for row in UNAVAILABLE_VARIABLES)
