"""The engines that can be compared, and how each is started at its best."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True, slots=True)
class Limits:
    """What every engine is given alike."""

    cpus: tuple[int, ...]
    kv_gib: int
    max_model_len: int = 4096
    max_num_seqs: int = 256


@dataclass(frozen=True, slots=True)
class Kind:
    """One engine in one configuration."""

    adapter: str  # module in peers/
    distribution: str  # as its environment knows it
    options: Mapping[str, Any] = field(default_factory=dict)  # for the adapter
    # Name and value of variables, given limits and the environment of the engine.
    variables: Callable[[Limits, Path], dict[str, str]] = lambda limits, home: {}
    # Words of the command that serves a model at a port; None: it has no such server.
    server: Callable[[Path, Path, int, Limits], list[str]] | None = None
    converter: str = ""  # script in peers/ that makes its format from a checkpoint
    suffix: str = ""  # of the converted model


@dataclass(frozen=True, slots=True)
class Engine:
    """A kind, and where it is installed."""

    name: str
    kind: Kind
    home: Path  # of its virtual environment

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    def environment(self, limits: Limits) -> dict[str, str]:
        """Variables of its processes: ours, less what would lead to our modules, and its own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VLLM_", "OMP_", "LD_PRELOAD"))
        }
        threads = str(len(limits.cpus))
        kept |= {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
        return kept | self.kind.variables(limits, self.home)

    def model_path(self, checkpoint: Path) -> Path:
        """Where its format of a checkpoint lies."""
        return checkpoint.with_name(checkpoint.name + self.kind.suffix)


def parse_peers(text: str, default_home: Path) -> list[Engine]:
    """Engines of `name=home,name=home`; a name alone lives where this program does.

    Raises ValueError for a name that is not known and a home without an interpreter.
    """
    engines = []
    for part in text.split(","):
        name, _, home = part.strip().partition("=")
        if name not in KINDS:
            raise ValueError(f"--peers {name!r}: known are {', '.join(KINDS)}")
        engine = Engine(name, KINDS[name], Path(home) if home else default_home)
        if not Path(engine.python).exists():
            raise ValueError(f"--peers {name}: there is no {engine.python}")
        engines.append(engine)
    return engines


def _our_variables(limits: Limits, home: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": str(limits.kv_gib)}


def _vllm_variables(limits: Limits, home: Path) -> dict[str, str]:
    """vLLM's advice for CPUs: space for the cache, threads bound, allocator and OpenMP preloaded.

    The libraries are taken from lib/ of its environment, where they are installed.
    """
    libraries = [home / "lib" / name for name in ("libtcmalloc_minimal.so.4", "libiomp5.so")]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(limits.kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, limits.cpus)),
        "VLLM_NO_USAGE_STATS": "1",
        # C++ is compiled with what the environment brings.
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if present := [str(library) for library in libraries if library.exists()]:
        variables["LD_PRELOAD"] = ":".join(present)
    return variables


def _vllm_in_process(limits: Limits, home: Path) -> dict[str, str]:
    return _vllm_variables(limits, home) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _serve_words(model: Path, port: int, limits: Limits) -> list[str]:
    """Flags that our server and vLLM's have in common."""
    words = ["--model", str(model), "--served-model-name", "model", "--dtype", "bfloat16"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    words += ["--max-model-len", str(limits.max_model_len)]
    return [*words, "--max-num-seqs", str(limits.max_num_seqs)]


def _server(home: Path, model: Path, port: int, limits: Limits) -> list[str]:
    # A module and not the command `vllm`, which asks for metadata that the build for CPUs lacks.
    python = str(home / "bin" / "python")
    return [python, "-m", "vllm.entrypoints.openai.api_server", *_serve_words(model, port, limits)]


def _eager_server(home: Path, model: Path, port: int, limits: Limits) -> list[str]:
    return [*_server(home, model, port, limits), "--enforce-eager"]


OURS = "ours"
EAGER = {"enforce_eager": True}
KINDS = {
    OURS: Kind("peer_vllm", "vllm", variables=_our_variables, server=_server),
    "vllm": Kind("peer_vllm", "vllm-cpu", variables=_vllm_variables, server=_server),
    "vllm-eager": Kind("peer_vllm", "vllm-cpu", EAGER, _vllm_variables, _eager_server),
    "vllm-inprocess": Kind("peer_vllm", "vllm-cpu", variables=_vllm_in_process),
    "vllm-inprocess-eager": Kind("peer_vllm", "vllm-cpu", EAGER, _vllm_in_process),
    "llama": Kind("peer_llama", "llama_cpp_python", converter="convert_gguf.py", suffix=".gguf"),
    "openvino": Kind(
        "peer_openvino",
        "openvino-genai",
        # Keys and values as wide as everywhere else; its default is 8 bits.
        {"KV_CACHE_PRECISION": "f16"},
        converter="convert_openvino.py",
        suffix=".openvino",
    ),
    "transformers": Kind("peer_transformers", "transformers"),
}
