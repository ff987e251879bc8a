"""`vllm collect-env`: what a report of a bug should say, and nothing that is secret."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import resource
import runpy
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm import envs

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "msgspec",
    "pyzmq",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "pydantic",
    "prometheus-client",
    "xgrammar",
    "llguidance",
    "opentelemetry-sdk",
    "habana-torch-plugin",
)
VARIABLES = (
    "VLLM_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "MALLOC_",
    "PT_HPU_",
    "HABANA_",
    "HLS_MODULE_ID",
    "GLOO_",
    "HCCL_",
    "MASTER_",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
CPU_FEATURES = re.compile(r"avx\w*|amx\w*|f16c|fma|sse4_2|neon|asimd\w*|sve\w*|bf16|i8mm")
LIMITS = {
    "open files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "locked memory": resource.RLIMIT_MEMLOCK,
    "address space": resource.RLIMIT_AS,
}
GIB = 2**30
ROOT = Path(__file__).resolve().parents[3]
Row = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> None:
    for title, rows in (
        ("System", list(system())),
        ("Limits", list(limits())),
        ("Packages", list(packages())),
        ("torch", list(torch_facts())),
        ("Kernels", list(kernels())),
        ("Devices", list(devices())),
        ("Environment", list(envs.shown(VARIABLES).items())),
    ):
        print(f"{title}\n{'-' * len(title)}")
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"{name:<{width}}  {value}")
        print()


def system() -> Iterator[Row]:
    from vllm.version import __version__

    info = _text("/proc/cpuinfo")
    yield "vllm", __version__
    yield "python", f"{sys.version.split()[0]}, {sys.executable}"
    yield "system", platform.platform()
    yield "libc", " ".join(platform.libc_ver())
    yield "cpu", f"{platform.machine()} {_field(info, 'model name')}".strip()
    usable = len(os.sched_getaffinity(0))
    yield "cores", f"{os.cpu_count()}, of which this process may use {usable}"
    words = (_field(info, "flags") or _field(info, "Features")).split()
    yield "cpu features", " ".join(word for word in words if CPU_FEATURES.fullmatch(word)) or "-"
    memory = _text("/proc/meminfo")
    for name, key in (("memory", "MemTotal"), ("memory available", "MemAvailable")):
        if kib := _field(memory, key):
            yield name, f"{int(kib.split()[0]) * 1024 / GIB:.1f} GiB"
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    yield "NUMA nodes", str(nodes or "-")
    yield "network interfaces", ", ".join(name for _, name in socket.if_nameindex()) or "-"


def limits() -> Iterator[Row]:
    for name, kind in LIMITS.items():
        soft, hard = (
            "unlimited" if value == resource.RLIM_INFINITY else str(value)
            for value in resource.getrlimit(kind)
        )
        yield name, soft if soft == hard else f"{soft} (at most {hard})"
    for name, path in (
        ("cgroup memory", "/sys/fs/cgroup/memory.max"),
        ("cgroup cpu", "/sys/fs/cgroup/cpu.max"),
    ):
        yield name, _text(path).strip() or "-"
    stat = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    yield "/dev/shm", f"{stat.f_frsize * stat.f_blocks / GIB:.1f} GiB" if stat else "-"


def packages() -> Iterator[Row]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "-"


def torch_facts() -> Iterator[Row]:
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}"
        return
    yield "version", f"{torch.__version__}, C++11 ABI {int(torch.compiled_with_cxx11_abi())}"
    yield "cpu capability", torch.backends.cpu.get_cpu_capability()
    yield "threads", f"{torch.get_num_threads()}, between ops {torch.get_num_interop_threads()}"
    yield (
        "built with",
        " | ".join(line.strip(" -") for line in torch.__config__.show().splitlines()[1:7]),
    )


def kernels() -> Iterator[Row]:
    try:
        extension = importlib.import_module("vllm._C")
    except ImportError as error:
        yield "native", f"not available ({error}): the torch references run instead"
        return
    import torch

    yield "native", str(extension.__file__)
    yield "instruction sets", " ".join(torch.ops.vllm.available_isas())
    yield "chosen", torch.ops.vllm.select_isa(envs.VLLM_CPU_ISA)
    yield from _compiler_flags()


def devices() -> Iterator[Row]:
    from vllm.errors import ConfigError
    from vllm.platforms import platform_of

    try:
        platform = platform_of()
        yield "platform", platform.name
        yield from platform.report()
    except ConfigError as error:
        yield "platform", f"cannot be used: {error}"


def _compiler_flags() -> Iterator[Row]:
    """Those of the checkout this runs from; an installed package does not bring them."""
    script = ROOT / "csrc" / "build.py"
    if not script.is_file():
        yield "compiler flags", f"unknown: no {script}"
        return
    try:
        build = runpy.run_path(str(script))
    except ImportError as error:
        yield "compiler flags", f"unknown: {error}"
        return
    yield "compiler flags", " ".join((*build["COMMON_FLAGS"], *build["KERNEL_FLAGS"]))
    for isa, flags in build["isa_flags"]().items():
        yield f"  {isa}", " ".join(flags) or "-"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """Of lines such as `name : value`, the first one's value; empty if there is none."""
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""
