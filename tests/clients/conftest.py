"""Real clients, unmodified, on one real server. Nothing leaves this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.entrypoints.openai.real_server import NAME, RealServer, serving

# What keeps clients from their own servers and from those of models.
QUIET = {
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


@pytest.fixture(scope="package", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    profiles = {"VLLM_TORCH_PROFILER_DIR": str(folder), "VLLM_TORCH_PROFILER_WITH_STACK": "0"}
    # Exact enough to be compared with what transformers computes.
    flags = ["--dtype", "float32", "--served-model-name", NAME, "alias"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    # A model of this size would fill its answers with white space and more members wherever JSON
    # lets it.
    forms = {"disable_any_whitespace": True, "disable_additional_properties": True}
    flags += ["--structured-outputs-config", json.dumps(forms)]
    with serving(*flags, log=folder / "log.txt", env=profiles) as server:
        yield server


@pytest.fixture(scope="package")
def base_url(server: RealServer) -> str:
    return f"{server.url}/v1"
