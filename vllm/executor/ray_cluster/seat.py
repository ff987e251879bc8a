"""The actor in the bundle of a rank or of a copy of the model. Imports no model stack."""

from __future__ import annotations

import importlib
import os
import site
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.errors import ConfigError

_MODULES = "HABANA_VISIBLE_MODULES"
_AGENT = "vllm.entrypoints.ray_node"


@dataclass(frozen=True)
class SeatFacts:
    """Where Ray has put an actor, and with which devices."""

    node: str  # id of the Ray node
    address: str
    modules: tuple[str, ...]  # ids of its HPUs


class Seat:
    """Holds what a rank, or a copy, needs; one of each machine runs the agent of all there."""

    def facts(self) -> SeatFacts:
        ray: Any = importlib.import_module("ray")
        context = ray.get_runtime_context()
        modules = tuple(str(i) for i in context.get_accelerator_ids().get("HPU", ()))
        return SeatFacts(context.get_node_id(), ray.util.get_node_ip_address(), modules)

    def hold(self) -> None:
        """Until the actor is ended."""
        threading.Event().wait()

    def run_agent(self, version: str, start: bytes, given: Mapping[str, str]) -> str:
        """Run an agent in a process whose environment is this one's and what is `given`.

        `start` is the pickle of a NodeStart or CopiesStart. `version` is that of the engine's vllm.
        Returns what was wrong; "" for a normal end.
        """
        from vllm.version import __version__

        if version != __version__:
            return f"vllm {__version__} is installed there, and {version} where the engine runs"
        reading, writing = os.pipe()
        command = [sys.executable, "-m", _AGENT, str(os.getpid()), str(writing)]
        with (
            open(reading, "rb") as said,
            subprocess.Popen(
                command, env=_environment(given), stdin=subprocess.PIPE, pass_fds=(writing,)
            ) as process,
        ):
            os.close(writing)
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended at once
                process.stdin.write(start)
                process.stdin.close()
            error = said.read().decode(errors="replace")
        code = process.returncode
        return error or (f"its agent ended with exit code {code}" if code else "")


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    import vllm
    from vllm import envs
    from vllm.executor.ray_cluster.session import THREADS, was_set_at_birth

    found = envs.whole()
    # Ray sets it for the actor, whose ranks count their threads by themselves.
    if not was_set_at_birth(THREADS):
        found.pop(THREADS, None)
    found.update(given)
    root = str(Path(vllm.__file__).parents[1])
    if root not in site.getsitepackages():
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (root, found.get("PYTHONPATH"))))
    return found


def modules_of(facts: Sequence[SeatFacts]) -> dict[str, str]:
    """The variable that shows all modules of a node to each rank there."""
    found = {module.strip() for fact in facts for module in fact.modules}
    if wrong := sorted(module for module in found if not module.isdecimal()):
        raise ConfigError(
            f"{_MODULES} has {wrong[0]!r} where Ray was started on {facts[0].address}: it must "
            "list numbers of modules, or be unset."
        )
    return {_MODULES: ",".join(sorted(found, key=int))} if found else {}
