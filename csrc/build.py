"""Builds the native ops: one extension module that holds the kernels of several instruction sets.

`setup.py` takes `cpu_extension()` and `BuildNative` from here; `python csrc/build.py --inplace`
builds vllm/_C*.so for a checkout.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent.parent
NAME = "vllm._C"

HOST_SOURCES = (
    "csrc/bindings.cpp",
    "csrc/cpu/attention.cpp",
    "csrc/cpu/cache.cpp",
    "csrc/cpu/collectives.cpp",
    "csrc/cpu/ranks.cpp",
    "csrc/cpu/elementwise.cpp",
    "csrc/cpu/gemm.cpp",
    "csrc/cpu/graph.cpp",
    "csrc/cpu/logprobs.cpp",
    "csrc/cpu/moe.cpp",
    "csrc/cpu/pack.cpp",
    "csrc/cpu/pool.cpp",
    "csrc/cpu/routing.cpp",
    "csrc/cpu/sampling.cpp",
    "csrc/cpu/select.cpp",
)
# Compiled once per instruction set.
KERNEL_SOURCES = (
    "csrc/cpu/isa/attention.cpp",
    "csrc/cpu/isa/attention_dot.cpp",
    "csrc/cpu/isa/elementwise.cpp",
    "csrc/cpu/isa/gemm.cpp",
    "csrc/cpu/isa/sampling.cpp",
)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
AVX512_BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
X86_ISAS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": AVX512,
    "avx512bf16": AVX512_BF16,
    "amx": (*AVX512_BF16, "-mamx-tile", "-mamx-bf16"),
}
ARM_ISAS = {"bf16": ("-march=armv8.2-a+bf16",)}
_MORE_ISAS = {"X86": X86_ISAS, "ARM": ARM_ISAS}
# Sets that differ from the one before in some kernels: the sources of these.
PARTIAL_ISAS = {"amx": ("csrc/cpu/isa/gemm_tiles.cpp",)}
# No -ffast-math: results must not depend on how a compiler reorders sums. These two only say that
# nobody reads errno or floating-point exception flags.
COMMON_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
KERNEL_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
# Kernels whose results must have the bits that separate operations give.
UNCONTRACTED = ("csrc/cpu/isa/sampling.cpp",)


def isa_flags() -> dict[str, tuple[str, ...]]:
    """Compiler flags by instruction set, for the machine type that is built for."""
    return {"baseline": (), **_MORE_ISAS.get(_machine(), {})}


def _machine() -> str:
    names = {"x86_64": "X86", "amd64": "X86", "aarch64": "ARM", "arm64": "ARM"}
    return names.get(platform.machine().lower(), "")


def cpu_extension() -> Extension:
    """The extension as setuptools knows it; only BuildNative can build it."""
    headers = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))]
    partial = (source for sources in PARTIAL_ISAS.values() for source in sources)
    sources = [*HOST_SOURCES, *KERNEL_SOURCES, *partial]
    return Extension(NAME, sources=sources, depends=headers, language="c++")


class BuildNative(build_ext):
    """Compiles kernel sources once per instruction set, which setuptools' own command cannot."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build(output, Path(self.build_temp).resolve())


def build(output: Path, scratch: Path) -> None:
    """Write the module to `output`; objects go to `scratch` and are reused while up to date."""
    compiler = os.environ.get("CXX", "g++")
    commands: list[list[str]] = []
    objects: list[Path] = []
    newest_header = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.h"))
    newest_header = max(newest_header, Path(__file__).stat().st_mtime)

    def add(source: str, variant: str, flags: tuple[str, ...]) -> None:
        target = scratch / variant / (source.replace("/", "_") + ".o")
        objects.append(target)
        changed = max((ROOT / source).stat().st_mtime, newest_header)
        if target.exists() and target.stat().st_mtime > changed:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        base = [compiler, *COMMON_FLAGS, f"-I{ROOT / 'csrc'}"]
        commands.append([*base, *flags, "-c", str(ROOT / source), "-o", str(target)])

    host_flags = _host_flags()
    for source in HOST_SOURCES:
        add(source, f"torch-{_torch_version()}", host_flags)
    for isa, flags in isa_flags().items():
        for source in PARTIAL_ISAS.get(isa, KERNEL_SOURCES):
            exact = ("-ffp-contract=off",) if source in UNCONTRACTED else ()
            add(source, isa, (*KERNEL_FLAGS, *exact, *flags, f"-DVLLM_ISA={isa}"))
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        list(pool.map(_run, commands))
    output.parent.mkdir(parents=True, exist_ok=True)
    # Linked aside and moved, so that a process that loads the module never meets half a file.
    linked = scratch / output.name
    _run([compiler, "-shared", *map(str, objects), *_link_flags(), "-o", str(linked)])
    fresh = output.with_name(f".{output.name}.new")
    shutil.copy2(linked, fresh)
    fresh.replace(output)


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def _host_flags() -> tuple[str, ...]:
    import sysconfig

    import torch
    from torch.utils.cpp_extension import include_paths

    includes = [f"-isystem{path}" for path in include_paths()]
    includes.append(f"-isystem{sysconfig.get_paths()['include']}")
    abi = int(torch.compiled_with_cxx11_abi())
    machine = (f"-DVLLM_CPU_WITH_{_machine()}",) if _machine() else ()
    # As torch is built: its headers check less, and read no field that only debug builds fill.
    return (*includes, "-DNDEBUG", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-fopenmp", *machine)


def _link_flags() -> tuple[str, ...]:
    from torch.utils.cpp_extension import library_paths

    paths = [f"-L{path}" for path in library_paths()]
    # libgomp comes with torch: linking torch's own copy keeps one thread pool in the process.
    return (*paths, "-ltorch", "-ltorch_cpu", "-lc10", "-fopenmp")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def main() -> None:
    if sys.argv[1:] != ["--inplace"]:
        raise SystemExit("usage: python csrc/build.py --inplace")
    os.chdir(ROOT)
    distribution = Distribution({"name": "vllm", "ext_modules": [cpu_extension()]})
    command = BuildNative(distribution)
    command.inplace = True
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    main()
