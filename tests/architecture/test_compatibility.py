"""docs/compatibility.md says of each of vLLM's flags, fields, routes and metrics what we do; the
code must agree, in both directions."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.entrypoints.openai.conftest import make_context
from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from vllm import envs
from vllm.config import unavailable_variables
from vllm.config.legacy import LEGACY
from vllm.config.unavailable import UNAVAILABLE
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import add_server_flags
from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.protocol.completion import CompletionRequest
from vllm.entrypoints.openai.routes import development, ui
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats
from vllm.utils.argparse import FlexibleArgumentParser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
WORKS = {"same", "different", "ours"}
ROW = re.compile(r"^\| `([^`]+)` \| ([a-z ]+) \|(.*)\|$")

BARE = frozenset(["HPU_ALIGNED_SCALE", "MAX_EXPERTS_PER_SLICE", "QUANT_CONFIG"])
# Without their VLLM_; buckets are in `variables_on_gaudi`.
ON_GAUDI = """
    HPU_ALIGNED_SCALE MAX_EXPERTS_PER_SLICE QUANT_CONFIG ALIBI_USE_FLOAT32_BIASES
    BUCKETING_FROM_FILE BUCKETING_STRATEGY COMPACT_GDN CONFIG_HIDDEN_LAYERS CONTIGUOUS_PA
    COS_SIN_RECOMPUTE DEBUG DEFRAG DEFRAG_THRESHOLD DEFRAG_WITH_GRAPHS DELAYED_SAMPLING
    DEVELOPER_MODE DISABLE_MARK_SCALES_AS_CONST DYNAMIC_KV_QUANT ENABLE_BUCKETING
    ENGINE_ITERATION_TIMEOUT_S EXPONENTIAL_BUCKETING FP32_SOFTMAX FULL_WARMUP
    FUSEDSDPA_SLIDE_THLD FUSED_BLOCK_SOFTMAX FUSED_BLOCK_SOFTMAX_ADJUSTMENT GC_THR_MULTIPLIER
    GRAPH_DECODE_STRATEGY GRAPH_PROMPT_RATIO GRAPH_PROMPT_STRATEGY GRAPH_RESERVED_MEM
    HANDLE_TOPK_DUPLICATES HPU_CONVERT_TO_FP8UZ HPU_FORCE_CHANNEL_FP8 HPU_FORCE_MARK_STEP
    HPU_FSDPA_SLICE_CHUNK_SIZE HPU_FSDPA_SLICE_ENABLED HPU_FSDPA_SLICE_SEQ_LEN_THLD
    HPU_FSDPA_SLICE_WITH_GRAPH_BREAKS HPU_HETERO_KV_LAYOUT HPU_LOG_STEP_CPU_FALLBACKS
    HPU_LOG_STEP_CPU_FALLBACKS_ALL HPU_LOG_STEP_GRAPH_COMPILATION
    HPU_LOG_STEP_GRAPH_COMPILATION_ALL HPU_MULTI_MODEL_CONFIG HPU_NIXL_JOINT_KV
    HPU_NIXL_STAGING_SLOTS MERGED_PREFILL MM_WARMUP_OUTSIDE_COMPILE_ONLY MOE_CHUNK
    MOE_TOKEN_BOUNDARY MULTIMODAL_BUCKETS MULTIMODAL_RESOLUTIONS NIXL_ABORT_REQUEST_TIMEOUT
    NIXL_SIDE_CHANNEL_HOST NIXL_SIDE_CHANNEL_PORT PROFILER_ENABLED PROFILE_DECODE PROFILE_PROMPT
    PROFILE_STEPS PROMPT_USE_FLEX_ATTENTION PROMPT_USE_FUSEDSDPA PT_PROFILE ROW_PARALLEL_CHUNKS
    ROW_PARALLEL_CHUNK_THRESHOLD RPC_TIMEOUT SCALE_ADJUSTMENT SKIP_WARMUP SOFTMAX_CONST_NORM
    SOFTMAX_CONST_NORM_VALUE TORCH_PROFILER_DIR T_COMPILE_DYNAMIC_SHAPES T_COMPILE_FULLGRAPH
    T_COMPILE_REGIONAL_COMPILATION USE_FAKE_HPU WEIGHT_LOAD_FORCE_SYNC WORKER_MULTIPROC_METHOD
"""


def sections() -> dict[str, dict[str, str]]:
    """Of each heading the rows of its table: name to status."""
    found: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            rows = found.setdefault(line.lstrip("# "), {})
        elif match := ROW.match(line):
            assert match[1] not in rows, f"two rows for {match[1]}"
            rows[match[1]] = match[2].strip()
            explained = match[3].strip() not in ("", "|")
            assert explained or match[2].strip() == "same", f"{match[1]}: say what differs and why"
    return found


def rows(title: str) -> dict[str, str]:
    table = sections()[title]
    assert table, f"no rows under {title!r}"
    return table


def working(title: str) -> set[str]:
    return {name for name, status in rows(title).items() if status in WORKS}


def parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser()
    add_server_flags(parser)
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def flags_of(parser: FlexibleArgumentParser) -> set[str]:
    """The first long spelling of every flag; --no-… is a form of its own flag."""
    return {
        next(word for word in action.option_strings if word.startswith("--"))
        for action in parser._actions
        if any(word.startswith("--") for word in action.option_strings)
    } - {"--help"} | {"--config"}  # which is replaced by what is in its file before flags are read


def test_every_flag_is_in_the_table_with_what_it_does() -> None:
    table = rows("Flags")
    idle = {flag.flag for flag in LEGACY if not flag.to}
    mapped = {flag.flag for flag in LEGACY if flag.to}
    missing = {flag.flag: "not yet" if flag.is_coming else "refused" for flag in UNAVAILABLE}
    expected = {
        flag: "no effect" if flag in idle else missing.get(flag, "works")
        for flag in flags_of(parser())
    }
    said = {
        flag: "works" if status in WORKS else status
        for flag, status in table.items()
        if status != "absent"
    }
    assert said == expected
    assert all(table[flag] == "different" for flag in mapped), "say what an old flag means now"


def test_flags_that_are_absent_are_unknown_to_the_parser() -> None:
    absent = {flag for flag, status in rows("Flags").items() if status == "absent"}
    known = {word for action in parser()._actions for word in action.option_strings}
    assert not absent & known


MODELS = {
    "Fields of /v1/completions": CompletionRequest,
    "Fields of /v1/chat/completions": ChatCompletionRequest,
}


@pytest.mark.parametrize(("title", "model"), MODELS.items(), ids=MODELS)
def test_every_field_is_in_the_table_with_what_it_does(title: str, model: type[Any]) -> None:
    refused = set(model.unavailable)
    expected = {name: "refused" if name in refused else "works" for name in model.model_fields}
    said = {
        name: "works" if status in WORKS else status
        for name, status in rows(title).items()
        if status != "ignored"
    }
    assert said == expected


def exported_metrics() -> set[str]:
    exposition = PrometheusStats("model", 1024, [{}]).exposition().decode()
    names = {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}
    return {name for name in names if name.startswith("vllm:")}


def served_routes() -> set[str]:
    context = make_context(FakeEngine(byte_tokenizer()), enable_tokenizer_info_endpoint=True)
    app = build_app(context, PrometheusStats("model", 1024, [{}]), LoggingStats(10.0))
    app.include_router(development.router)
    hidden = {route.path for route in ui.router.routes if isinstance(route, APIRoute)}
    return set(app.openapi()["paths"]) | hidden


def test_every_variable_is_in_the_table_with_what_it_does() -> None:
    expected = {v.name: "works" if v.has_effect else "no effect" for v in envs.VARIABLES}
    expected |= dict.fromkeys(unavailable_variables.NAMES, "not yet")
    said = {
        name: "works" if status in WORKS else status
        for name, status in rows("Environment variables").items()
        if status != "ignored"
    }
    assert said == expected, "docs/compatibility.md, Environment variables"
    ignored = set(rows("Environment variables")) - set(said)
    assert not ignored & set(expected)


def test_every_variable_of_vllm_on_gaudi_is_in_the_table() -> None:
    assert variables_on_gaudi() <= set(rows("Environment variables"))


def variables_on_gaudi() -> set[str]:
    """What the fork and the plug-in for Gaudi read."""
    prefix = "VLLM_"
    named = {word if word in BARE else prefix + word for word in ON_GAUDI.split()}
    axes = {"PROMPT": ("BS", "QUERY", "SEQ", "CTX"), "DECODE": ("BS", "BLOCK")}
    bounds = ("MIN", "STEP", "MAX", "PAD_MAX", "PAD_PERCENT")
    return named | {
        f"{prefix}{phase}_{axis}_BUCKET_{bound}"
        for phase, names in axes.items()
        for axis in names
        for bound in bounds
        if axis != "SEQ" or "PAD" not in bound  # the old name of QUERY, older than padding
    }


def test_every_metric_is_in_the_table() -> None:
    assert working("Metrics") == exported_metrics()


def test_every_route_is_in_the_table() -> None:
    assert working("Routes") == served_routes()


def test_python_names_can_be_imported() -> None:
    for path in sorted(working("Python")):
        module, _, name = path.rpartition(".")
        assert name in dir(importlib.import_module(module)), path
