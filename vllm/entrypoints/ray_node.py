"""The agent of a machine of a Ray cluster, in a process that an actor starts.

`python -m vllm.entrypoints.ray_node PID FD`, with the pickle of a NodeStart as input: PID is the
actor's, and FD takes what was wrong.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from dataclasses import replace

from vllm.engine.arg_utils import EngineArgs
from vllm.envs import Environment
from vllm.errors import ConfigError, EngineDeadError, LoadError
from vllm.executor import run_agent
from vllm.executor.ray_cluster.node_start import NodeStart
from vllm.logger import init_logger, tag_process
from vllm.utils.spawning import killed_with_parent

logger = init_logger(__name__)


def main(actor: int, fd: int) -> int:
    """Run the agent until the engine stops it. Returns the exit code."""
    killed_with_parent()
    if os.getppid() != actor:  # it has ended in between
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    start: NodeStart = pickle.loads(sys.stdin.buffer.read())
    nodes = replace(start.nodes, own_ip=Environment().VLLM_HOST_IP)
    tag_process(f"node {nodes.own}")
    try:
        config = EngineArgs(**start.arguments).create_engine_config()
        run_agent(config, start.places, nodes, start.worker_type)
    except (ConfigError, LoadError, EngineDeadError) as error:
        logger.error("%s", error)
        os.write(fd, str(error).encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
