"""The agent of a machine of a Ray cluster, in a process that an actor starts.

`python -m vllm.entrypoints.ray_node PID FD`, with the pickle of a NodeStart or CopiesStart as
input: PID is the actor's, and FD takes what was wrong.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import replace
from typing import Final

from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.engine.copies_agent import CopiesAgent
from vllm.envs import Environment
from vllm.errors import ConfigError, EngineDeadError, LoadError, NotAvailable
from vllm.executor import run_agent
from vllm.executor.ray_cluster.node_start import CopiesStart, NodeStart
from vllm.logger import init_logger, tag_process
from vllm.utils.spawning import killed_with_parent

logger = init_logger(__name__)

_MOST_BYTES: Final = 1 << 15  # of an error: less than a pipe holds


def main(actor: int, fd: int) -> int:
    """Run the agent until the engine stops it. Returns the exit code."""
    killed_with_parent()
    os.set_inheritable(fd, False)  # its end is that of this process
    if os.getppid() != actor:  # it has ended in between
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    try:
        _run(pickle.loads(sys.stdin.buffer.read()))
    except Exception as error:
        is_expected = isinstance(error, ConfigError | LoadError | NotAvailable | EngineDeadError)
        (logger.error if is_expected else logger.exception)("%s", error)
        text = str(error) if is_expected else f"{type(error).__name__}: {error}"
        os.write(fd, text.encode()[:_MOST_BYTES])
        return 1
    return 0


def _run(start: NodeStart | CopiesStart) -> None:
    if isinstance(start, CopiesStart):
        _run_copies(start)
        return
    nodes = replace(start.nodes, own_ip=Environment().VLLM_HOST_IP)
    tag_process(f"node {nodes.own}")
    arguments = pickle.loads(start.arguments)
    config = EngineArgs(**arguments).create_engine_config()
    run_agent(config, start.places, nodes, start.worker_type)


def _run_copies(start: CopiesStart) -> None:
    arguments = {**pickle.loads(start.arguments), **start.changes}
    config = AsyncEngineArgs(**arguments).create_engine_config()
    tag_process(f"copies of {start.address}")
    CopiesAgent(config, address=start.address).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
