"""Puts the emulated device into a directory of its own, unless it is there and up to date.

    python tools/hpu_emulator/install.py [DIRECTORY]     prints the directory

Programs that shall see the device have the directory on PYTHONPATH; no others ever do.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = HERE.parents[1] / ".venv" / "hpu_emulator"
STAMP = ".sources"
PACKAGES = ("habana_frameworks", "hpu_emulator")


def fingerprint() -> str:
    """Of what is compiled, and of the torch that it is compiled against."""
    # Not by importing torch, which would load the plugin that is found next to this file.
    torch_version = importlib.metadata.version("torch")
    digest = hashlib.sha256(f"{torch_version} {sys.version}".encode())
    paths = [HERE / "setup.py", HERE / "pyproject.toml", *(HERE / "csrc").iterdir()]
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def install(target: Path = DEFAULT) -> Path:
    """Builds and installs into `target`, which it owns. Safe to call from several processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint()
        stamp = target / STAMP
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            _build(target)
            stamp.write_text(wanted, encoding="utf-8")
        _copy_python(target)
    return target


def _build(target: Path) -> None:
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-build-isolation", "--no-deps", "--target", str(fresh), str(HERE)]
    environment = {**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS", "2")}
    # The installed emulator must not be loaded by the interpreter that builds it anew.
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"the emulator does not build:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def _copy_python(target: Path) -> None:
    """Brings Python files up to date without compiling anything."""
    for package in PACKAGES:
        sources = {p.relative_to(HERE) for p in (HERE / package).rglob("*.py")}
        for stale in {p.relative_to(target) for p in (target / package).rglob("*.py")} - sources:
            (target / stale).unlink()
        for source in sources:
            _copy_if_changed(HERE / source, target / source)


def _copy_if_changed(source: Path, copy: Path) -> None:
    text = source.read_bytes()
    if copy.exists() and copy.read_bytes() == text:
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: another process may be importing it.
    fresh = copy.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(text)
    fresh.replace(copy)


if __name__ == "__main__":
    print(install(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DEFAULT))
