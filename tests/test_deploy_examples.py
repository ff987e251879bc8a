"""What examples/deploy starts can start: flags, variables, ports, probes and volumes that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm import envs
from vllm.entrypoints.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "examples" / "deploy"
# How long a first start may compile, as README_GAUDI.md and the Dockerfiles have it.
WARM_UP_S = 2 * 3600
# Of the Gaudi software, its container runtime and the model hub.
FOREIGN = {"PT_HPU_RECIPE_CACHE_CONFIG", "HABANA_VISIBLE_DEVICES", "HF_TOKEN"}


def documents() -> dict[str, Any]:
    text = (DEPLOY / "kubernetes.hpu.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pod() -> Any:
    return documents()["Deployment"]["spec"]["template"]["spec"]


def container() -> Any:
    (only,) = pod()["containers"]
    return only


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.hpu.yaml").read_text())


def arguments() -> dict[str, list[str]]:
    return {
        "kubernetes": container()["args"],
        "compose": [
            re.sub(r"\$\{MODEL.*\}", "model", word)
            for word in compose()["services"]["vllm"]["command"]
        ],
    }


@pytest.mark.parametrize("where", ["kubernetes", "compose"])
def test_arguments_are_those_of_vllm_serve(where: str) -> None:
    words = ["serve", *arguments()[where]]

    args = build_parser("serve", words).parse_args(words)

    assert args.device == "hpu"
    assert args.max_model_len == 8192


def test_variables_are_known() -> None:
    named = {entry["name"] for entry in container()["env"]}
    named |= set(compose()["services"]["vllm"]["environment"])

    assert named <= FOREIGN | {variable.name for variable in envs.VARIABLES}
    for entry in container()["env"]:
        if entry["name"].startswith("VLLM_"):
            getattr(envs.Environment({entry["name"]: entry["value"]}), entry["name"])


def test_the_start_up_probe_waits_for_warm_up() -> None:
    probes = (
        container()["startupProbe"],
        container()["readinessProbe"],
        container()["livenessProbe"],
    )
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}

    assert probes[0]["periodSeconds"] * probes[0]["failureThreshold"] >= WARM_UP_S
    for probe in probes:
        assert probe["httpGet"] == {"path": "/health", "port": "http"}
    assert ports == {"http": 8000}


def test_a_stop_leaves_open_requests_their_time() -> None:
    for words, grace_s in (
        (arguments()["kubernetes"], pod()["terminationGracePeriodSeconds"]),
        (
            arguments()["compose"],
            int(compose()["services"]["vllm"]["stop_grace_period"].rstrip("s")),
        ),
    ):
        (flag,) = (word for word in words if word.startswith("--shutdown-timeout="))
        assert grace_s >= int(flag.partition("=")[2]) + 10


def test_the_pod_asks_for_no_privilege() -> None:
    own, shared = container()["securityContext"], pod()["securityContext"]

    assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert shared["runAsNonRoot"] is True
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    # OpenShift chooses user and group.
    assert not {"runAsUser", "fsGroup", "hostNetwork", "hostIPC"} & {*shared, *pod()}


def test_the_device_is_requested_as_it_is_limited() -> None:
    resources = container()["resources"]

    for name in ("habana.ai/gaudi", "hugepages-2Mi"):
        assert resources["requests"][name] == resources["limits"][name]


def test_parts_of_the_manifest_find_each_other() -> None:
    kinds = documents()
    template = kinds["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}

    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert kinds["Service"]["spec"]["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} == {"http"}
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == kinds["PersistentVolumeClaim"]["metadata"]["name"]
    mounts = {mount["mountPath"] for mount in container()["volumeMounts"]}
    made = (ROOT / "Dockerfile.hpu.ubi").read_text()
    for path in ("/cache/huggingface", "/cache/recipes"):
        assert path in mounts
        assert path in made


def test_compose_builds_from_the_repository() -> None:
    service = compose()["services"]["vllm"]
    context = (DEPLOY / service["build"]["context"]).resolve()

    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).exists()
    assert all(port.endswith(":8000") for port in service["ports"])
    named = {volume.partition(":")[0] for volume in service["volumes"]}
    assert set(compose()["volumes"]) <= named
