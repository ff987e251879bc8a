"""What is in examples/deploy: documents, pods, containers and the command lines of servers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
KUBERNETES, SETS, RAY = (
    f"{name}.hpu.yaml" for name in ("kubernetes", "leaderworkerset", "rayservice")
)
COMPOSE = "compose.hpu.yaml"
LEADER, WORKER = "leaderTemplate", "workerTemplate"
HEAD, GAUDI = "head", "gaudi"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a manifest. `where` is unique."""

    where: str
    template: Any

    @property
    def spec(self) -> Any:
        return self.template["spec"]

    @property
    def container(self) -> Any:
        (only,) = self.spec["containers"]
        return only

    @property
    def variables(self) -> dict[str, Any]:
        return {entry["name"]: entry for entry in self.container["env"]}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def document(name: str, kind: str) -> Any:
    (only,) = (found for found in documents(name) if found["kind"] == kind)
    return only


def service() -> Any:
    """The one of the Compose file."""
    (only,) = documents(COMPOSE)[0]["services"].values()
    return only


def pods() -> dict[str, Pod]:
    group = document(SETS, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    cluster = document(RAY, "RayService")["spec"]["rayClusterConfig"]
    found = {
        "Deployment": document(KUBERNETES, "Deployment")["spec"]["template"],
        LEADER: group[LEADER],
        WORKER: group[WORKER],
        HEAD: cluster["headGroupSpec"]["template"],
        **{spec["groupName"]: spec["template"] for spec in cluster["workerGroupSpecs"]},
    }
    return {where: Pod(where, template) for where, template in found.items()}


def serve_config() -> Any:
    """What KubeRay gives to Ray Serve."""
    return yaml.safe_load(document(RAY, "RayService")["spec"]["serveConfigV2"])


def commands() -> dict[str, list[str]]:
    """Arguments of every `vllm serve`, with the variables that something else sets."""
    size = document(SETS, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["size"]
    found = {
        "Deployment": pods()["Deployment"].container["args"],
        "compose": with_compose({"MODEL": "model"}),
        "compose, all": with_compose({"MODEL": "model", "COPIES": "8"}),
    }
    for where, number in ((LEADER, 0), (WORKER, 1)):
        values = {
            "LWS_GROUP_SIZE": size,
            "LWS_WORKER_INDEX": number,
            "LWS_LEADER_ADDRESS": "127.0.0.1",
        }
        found[where] = [
            re.sub(r"\$\((\w+)\)", lambda match: str(values[match[1]]), word)  # noqa: B023
            for word in pods()[where].container["args"]
        ]
    return found


def with_compose(values: dict[str, str]) -> list[str]:
    """The command after Compose has put variables in, with its ${NAME:-default}."""

    def value(match: re.Match[str]) -> str:
        name, _, rest = match[1].partition(":")
        return values.get(name) or rest.removeprefix("-")

    return [re.sub(r"\$\{([^}]*)\}", value, word) for word in service()["command"]]


def flag(words: list[str], name: str) -> str:
    (only,) = (word for word in words if word.startswith(f"--{name}="))
    return only.partition("=")[2]
