"""Builds the package for one kind of device: VLLM_TARGET_DEVICE=cpu (the default), hpu or cuda."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.develop import develop

ROOT = Path(__file__).resolve().parent
DEVICES = ("cpu", "hpu", "cuda")
NATIVE_BUILD = ROOT / "csrc" / "build.py"


def target_device() -> str:
    device = os.environ.get("VLLM_TARGET_DEVICE", "").strip().lower() or "cpu"
    if device == "auto":
        device = "cpu"  # what an engine finds when it starts; only the CPU needs a build
    if device not in DEVICES:
        raise SystemExit(f"VLLM_TARGET_DEVICE={device}: must be one of {', '.join(DEVICES)}.")
    if device == "cuda":
        raise SystemExit(
            "VLLM_TARGET_DEVICE=cuda: there is no CUDA platform yet. Build for cpu, which is the "
            "default, or hpu."
        )
    return device


def version() -> str:
    values: dict[str, Any] = {}
    exec((ROOT / "vllm" / "version.py").read_text(encoding="utf-8"), values)
    return str(values["__version__"])


def requirements(file: str) -> list[str]:
    """The requirements of a file and of those it includes; options of pip are left out."""
    found: list[str] = []
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += requirements(text[3:].strip())
        elif text and not text.startswith("-"):
            found.append(text)
    return found


def native(device: str) -> dict[str, Any]:
    """Arguments of setup() for native code; none where nothing is built."""
    # `make build` compiles by itself, where what is up to date is not compiled again.
    is_wanted = os.environ.get("VLLM_BUILD_NATIVE", "1") != "0"
    if device != "cpu" or not NATIVE_BUILD.exists() or not is_wanted:
        return {}
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        print(
            f"WARNING: no C++ compiler ({compiler}): building without native kernels. Everything "
            "works, several times slower. Install g++ (or set CXX) and install again.",
            file=sys.stderr,
        )
        return {}
    if importlib.util.find_spec("torch") is None:
        return _without_torch()
    build = _load(NATIVE_BUILD)
    return {"ext_modules": [build.cpu_extension()], "cmdclass": {"build_ext": build.BuildNative}}


def _without_torch() -> dict[str, Any]:
    """An isolated build gets torch from pip, which asks here; any other is told to install it."""
    if "develop" in sys.argv or "install" in sys.argv:
        raise SystemExit(
            "torch is not installed. Run `pip install -r requirements-cpu.txt` first, or `make "
            "build`."
        )
    torch = next(line for line in requirements("requirements-cpu.txt") if line.startswith("torch="))
    return {"setup_requires": [torch]} if "egg_info" in sys.argv else {}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_native_build", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Develop(develop):
    """As pip installs a checkout, but with the torch that is there instead of a fresh one."""

    def run(self) -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "-e", str(ROOT)]
        subprocess.check_call(command + ["--no-deps"] * bool(self.no_deps))


def main() -> None:
    device = target_device()
    options = native(device)
    commands = {"develop": Develop, **options.pop("cmdclass", {})}
    setup(
        version=version(),
        packages=find_packages(include=["vllm", "vllm.*"]),
        package_data={"vllm": ["py.typed", "**/*.html", "**/*.css", "**/*.js", "**/*.svg"]},
        install_requires=requirements(f"requirements-{device}.txt"),
        extras_require={
            "ray": requirements("requirements-ray.txt"),
            "ray-serve": requirements("requirements-ray-serve.txt"),
        },
        cmdclass=commands,
        **options,
    )


if __name__ == "__main__":
    main()
