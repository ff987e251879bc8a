"""What examples/deploy starts can start: fields, flags, variables, ports, probes and volumes."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fastapi.routing import APIRoute

from tests.deployment import manifests
from tests.deployment.manifests import (
    COMPOSE,
    DEPLOY,
    GAUDI,
    HEAD,
    KUBERNETES,
    LEADER,
    RAY,
    ROOT,
    SETS,
    WORKER,
    commands,
    document,
    documents,
    flag,
    pods,
    serve_config,
    service,
)
from tests.hpu_emulator.conftest import Emulated, emulated
from tools.tiny_models import random_checkpoint
from vllm import envs
from vllm.entrypoints.cli.main import build_parser
from vllm.entrypoints.openai.app import router

__all__ = ["emulated"]
SCHEMAS = Path(__file__).parent / "schemas"
# How long a first start may compile, as README_GAUDI.md and the Dockerfiles have it.
WARM_UP_S = 2 * 3600
# Of the Gaudi software, its container runtime, the model hub and Python.
FOREIGN = {"PT_HPU_RECIPE_CACHE_CONFIG", "HABANA_VISIBLE_DEVICES", "HF_TOKEN", "PYTHONPATH"}
SERVERS = ("Deployment", LEADER)  # pods with an HTTP server of ours
RANKS = (*SERVERS, WORKER, GAUDI)  # pods with Gaudis
EVERY_POD = pytest.mark.parametrize("where", list(pods()))
EVERY_COMMAND = pytest.mark.parametrize("where", list(commands()))


# -- fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "name", "kind"),
    [("leaderworkerset", SETS, "LeaderWorkerSet"), ("rayservice", RAY, "RayService")],
)
def test_custom_resources_have_fields_that_exist(schema: str, name: str, kind: str) -> None:
    check(schema, document(name, kind))


def test_the_compose_file_has_fields_that_exist() -> None:
    check("compose", documents(COMPOSE)[0])


def check(schema: str, value: Any) -> None:
    rules = json.loads((SCHEMAS / f"{schema}.json").read_text())
    validator = jsonschema.Draft202012Validator(rules)
    jsonschema.Draft202012Validator.check_schema(rules)
    validator.validate(value)


@pytest.mark.parametrize("schema", ["leaderworkerset", "rayservice"])
@pytest.mark.parametrize("path", ["", "metadata", "spec"])
def test_schemas_refuse_fields_that_do_not_exist(schema: str, path: str) -> None:
    files = {
        "leaderworkerset": (SETS, "LeaderWorkerSet"),
        "rayservice": (RAY, "RayService"),
    }
    wrong = document(*files[schema])
    (wrong[path] if path else wrong)["unknown"] = 1

    with pytest.raises(jsonschema.ValidationError, match="unknown"):
        check(schema, wrong)


def test_kubernetes_knows_all_fields() -> None:
    """By the schemas of Kubernetes itself; pods of custom resources included."""
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate of requirements-dev.txt is missing"
    )
    custom = {"LeaderWorkerSet", "RayService"}
    found = [each for name in (KUBERNETES, SETS) for each in documents(name)]
    plain = [each for each in found if each["kind"] not in custom]
    assert {each["kind"] for each in plain} == {"Deployment", "Service", "PersistentVolumeClaim"}
    version = kubernetes.latest_version()
    for each in (*plain, *map(as_document, pods().values())):
        kubernetes.validate(each, version, strict=True)

    wrong = as_document(pods()[WORKER])
    wrong["template"]["spec"]["containers"][0]["unknown"] = 1
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, version, strict=True)


def as_document(pod: manifests.Pod) -> Any:
    metadata = {"name": "pod"}
    template = json.loads(json.dumps(pod.template))
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": template}


# -- command lines --------------------------------------------------------------------------------


@EVERY_COMMAND
def test_arguments_are_those_of_vllm_serve(where: str) -> None:
    words = ["serve", *commands()[where]]

    args = build_parser("serve", words).parse_args(words)

    assert args.device == "hpu"
    assert args.max_model_len == 8192


def test_settings_resolve_on_a_gaudi(emulated: Emulated, tmp_path: Path, example: Any) -> None:
    """An emulated one, with a small model."""
    model = random_checkpoint.make(
        "llama",
        tmp_path / "model",
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    given = {where: [str(model), *words[1:]] for where, words in commands().items()}
    given[GAUDI] = [str(model), *ray_words(example)]
    (tmp_path / "given.json").write_text(json.dumps(given))

    said = emulated.run(
        f"""
        import json
        from pathlib import Path
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.cli.main import build_parser
        from vllm.entrypoints.openai.cli_args import validate_parsed_serve_args

        found = {{}}
        for where, words in json.loads(Path({str(tmp_path / "given.json")!r}).read_text()).items():
            words = ["serve", *words]
            args = build_parser("serve", words).parse_args(words)
            args.model = args.model_tag
            validate_parsed_serve_args(args)
            parallel = AsyncEngineArgs.from_cli_args(args).create_engine_config().parallel
            found[where] = [parallel.world_size, parallel.nnodes, parallel.data_parallel_size]
        print(json.dumps(found))
        """,
        # Its tokenizer was made for less.
        VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
    )

    found = json.loads(said.splitlines()[-1])
    assert found == {
        "Deployment": [1, 1, 1],
        "compose": [1, 1, 1],
        "compose, all": [1, 1, 8],
        LEADER: [16, 2, 1],
        WORKER: [16, 2, 1],
        GAUDI: [1, 1, 1],
    }


def test_nodes_of_a_group_are_started_alike() -> None:
    """But for what only node 0 does, and what only the others do."""
    leader, worker = (pods()[where].container["args"] for where in (LEADER, WORKER))

    assert set(leader) - set(worker) == {"--shutdown-timeout=60"}
    assert set(worker) - set(leader) == {"--headless"}
    for name in ("node-rank", "nnodes", "master-addr"):
        assert re.fullmatch(r"\$\(LWS_\w+\)", flag(leader, name))


def ray_words(example: Any) -> list[str]:
    """Flags of `vllm serve` among the arguments of the application, as the example makes them."""
    known = {"model", *example.Scaling.__dataclass_fields__}
    (application,) = serve_config()["applications"]
    flags = {name: value for name, value in application["args"].items() if name not in known}
    return list(example.words_of(flags))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ray_serve.py as pods import it: from a directory on the path."""
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
    monkeypatch.syspath_prepend(DEPLOY)
    (application,) = serve_config()["applications"]
    return importlib.import_module(application["import_path"].partition(":")[0])


def test_ray_serve_takes_its_configuration(example: Any) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config())
    (application,) = config.applications
    front = getattr(example, application.import_path.partition(":")[2])(application.args)

    replica = front._bound_deployment.init_args[0]._bound_deployment
    scaling = replica._deployment_config.autoscaling_config
    spec = document(RAY, "RayService")["spec"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert scaling.max_replicas == group["maxReplicas"], "a pod for each replica"
    assert scaling.min_replicas == group["minReplicas"]
    drain_s = replica._deployment_config.graceful_shutdown_timeout_s
    assert drain_s < spec["rayClusterDeletionDelaySeconds"]
    assert drain_s < pods()[GAUDI].spec["terminationGracePeriodSeconds"]
    offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
    assert offered["HPU"] == pods()[GAUDI].container["resources"]["limits"]["habana.ai/gaudi"]
    wanted = replica.ray_actor_options
    assert wanted["resources"] == {"HPU": offered["HPU"]}
    assert wanted["num_cpus"] <= int(group["rayStartParams"]["num-cpus"])


def test_the_cluster_has_the_ray_of_the_image() -> None:
    required = (ROOT / "requirements-ray.txt").read_text()
    version = document(RAY, "RayService")["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray=={version}" in required.splitlines()
    assert f"ray[serve]=={version}" in (ROOT / "requirements-ray-serve.txt").read_text()
    assert "-r requirements-ray-serve.txt" in (ROOT / "requirements-hpu.txt").read_text()


# -- variables, probes, ports ---------------------------------------------------------------------


def test_variables_are_known() -> None:
    named = {name for pod in pods().values() for name in pod.variables}
    named |= set(service()["environment"])

    assert named <= FOREIGN | {variable.name for variable in envs.VARIABLES}
    for pod in pods().values():
        for name, entry in pod.variables.items():
            if name.startswith("VLLM_") and "value" in entry:
                getattr(envs.Environment({name: entry["value"]}), name)


def test_nodes_say_their_own_address() -> None:
    for where in (LEADER, WORKER):
        source = pods()[where].variables["VLLM_HOST_IP"]["valueFrom"]
        assert source == {"fieldRef": {"fieldPath": "status.podIP"}}


@pytest.mark.parametrize("where", SERVERS)
def test_the_start_up_probe_waits_for_warm_up(where: str) -> None:
    container = pods()[where].container
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    routes = {route.path for route in router.routes if isinstance(route, APIRoute)}

    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= WARM_UP_S
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": "http"}
    assert "/health" in routes
    assert ports["http"] == 8000
    # An engine that hangs is noticed by the answer, which takes two seconds.
    assert (
        min(container[f"{name}Probe"]["timeoutSeconds"] for name in ("readiness", "liveness")) >= 5
    )


def test_a_node_without_a_server_has_no_probe() -> None:
    assert not {"startupProbe", "readinessProbe", "livenessProbe"} & set(pods()[WORKER].container)


def test_probes_of_ray_ask_for_routes_that_ray_has() -> None:
    """They are given, since those that KubeRay would add need a program of another image."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    folder = Path(ray.__file__).parent
    reporter = folder / "dashboard" / "modules" / "reporter"
    routes = {
        ("serve", "/-/healthz"): folder / "serve" / "_private" / "proxy_request_response.py",
        ("dashboard", "/api/gcs_healthz"): reporter / "reporter_head.py",
        ("agent", "/api/local_raylet_healthz"): reporter / "healthz_agent.py",
    }
    numbers = {"serve": 8000, "dashboard": 8265, "agent": 52365}

    for where in (HEAD, GAUDI):
        container = pods()[where].container
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for name in ("readinessProbe", "livenessProbe"):
            asked = container[name]["httpGet"]
            text = routes[asked["port"], asked["path"]].read_text()
            assert asked["path"] in text
            assert ports[asked["port"]] == numbers[asked["port"]]
    assert serve_config()["http_options"]["port"] == numbers["serve"]


def test_a_stop_leaves_open_requests_their_time() -> None:
    for where in SERVERS:
        pod = pods()[where]
        sleep_s = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain_s = int(flag(commands()[where], "shutdown-timeout"))
        assert pod.spec["terminationGracePeriodSeconds"] >= sleep_s + drain_s + 10
    grace_s = int(service()["stop_grace_period"].rstrip("s"))
    assert grace_s >= int(flag(commands()["compose"], "shutdown-timeout")) + 10


def test_the_other_nodes_of_a_group_stay_until_node_0_has_drained() -> None:
    leader, worker = pods()[LEADER], pods()[WORKER]
    sleeps = [pod.container["lifecycle"]["preStop"]["sleep"]["seconds"] for pod in (leader, worker)]

    assert sleeps[1] >= sleeps[0] + int(flag(commands()[LEADER], "shutdown-timeout")) + 10
    assert worker.spec["terminationGracePeriodSeconds"] >= sleeps[1] + 10


# -- pods -----------------------------------------------------------------------------------------


@EVERY_POD
def test_a_pod_asks_for_no_privilege(where: str) -> None:
    spec = pods()[where].spec

    for container in (*spec["containers"], *spec.get("initContainers", ())):
        own = container["securityContext"]
        assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    shared = spec["securityContext"]
    assert shared["runAsNonRoot"] is True
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    # OpenShift chooses user and group.
    assert not {"runAsUser", "fsGroup", "hostNetwork", "hostIPC"} & {*shared, *spec}


@pytest.mark.parametrize("where", RANKS)
def test_the_device_is_requested_as_it_is_limited(where: str) -> None:
    resources = pods()[where].container["resources"]

    for name in ("habana.ai/gaudi", "hugepages-2Mi"):
        assert resources["requests"][name] == resources["limits"][name]


def test_a_pod_has_a_gaudi_for_each_rank() -> None:
    for where, count in {"Deployment": 1, LEADER: 8, WORKER: 8}.items():
        limits = pods()[where].container["resources"]["limits"]
        words = ["serve", *commands()[where]]
        args = build_parser("serve", words).parse_args(words)
        ranks = args.tensor_parallel_size * args.pipeline_parallel_size
        assert limits["habana.ai/gaudi"] == count == ranks // args.nnodes


@EVERY_POD
def test_images_are_those_that_the_readme_builds(where: str) -> None:
    readme = (ROOT / "README_GAUDI.md").read_text()
    built = set(re.findall(r"^\$ docker build -f \S+ -t (\S+) \.$", readme, re.MULTILINE))
    spec = pods()[where].spec

    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["image"].rpartition("/")[2].partition(":")[0] in built
    assert service()["image"] in built


@pytest.mark.parametrize("where", RANKS)
def test_volumes_are_where_the_image_looks(where: str) -> None:
    pod = pods()[where]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    made = (ROOT / "Dockerfile.hpu.ubi").read_text()

    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert mounts["/cache/recipes"] == "recipes"
    cache = pod.variables["PT_HPU_RECIPE_CACHE_CONFIG"]["value"]
    assert cache.split(",")[0] == "/cache/recipes"
    for path in ("/cache/huggingface", "/cache/recipes"):
        assert path in mounts and path in made
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    kinds = {found["kind"]: found for found in documents(KUBERNETES)}
    assert claim == kinds["PersistentVolumeClaim"]["metadata"]["name"]


def test_code_of_ray_serve_is_mounted_where_python_looks() -> None:
    for where in (HEAD, GAUDI):
        pod = pods()[where]
        (mount,) = (m for m in pod.container["volumeMounts"] if m["name"] == "code")
        (volume,) = (v for v in pod.spec["volumes"] if v["name"] == "code")
        assert mount["mountPath"] == pod.variables["PYTHONPATH"]["value"]
        assert f"create configmap {volume['configMap']['name']} " in (DEPLOY / RAY).read_text()


@pytest.mark.parametrize(
    ("name", "kind", "template"),
    [(KUBERNETES, "Deployment", "Deployment"), (SETS, "LeaderWorkerSet", LEADER)],
)
def test_services_find_pods(name: str, kind: str, template: str) -> None:
    found = document(name, "Service")["spec"]
    labels = dict(pods()[template].template["metadata"]["labels"])
    if kind == "LeaderWorkerSet":
        # Set by LeaderWorkerSet. The others of a group have no server.
        labels["leaderworkerset.sigs.k8s.io/worker-index"] = "0"
        assert (
            not found["selector"].items() <= pods()[WORKER].template["metadata"]["labels"].items()
        )
    else:
        selector = document(name, kind)["spec"]["selector"]["matchLabels"]
        assert selector.items() <= labels.items()

    assert found["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in found["ports"]} == {"http"}


def test_metrics_are_where_the_annotations_say() -> None:
    routes = {route.path for route in router.routes if isinstance(route, APIRoute)}
    for where in SERVERS:
        said = pods()[where].template["metadata"]["annotations"]
        assert said["prometheus.io/path"] == "/metrics" and "/metrics" in routes
        assert said["prometheus.io/port"] == "8000"


def test_a_node_waits_for_the_name_that_it_uses() -> None:
    """Node 0 ends where its name is not known yet, and the others after ten seconds."""
    for where in (LEADER, WORKER):
        (first,) = pods()[where].spec["initContainers"]
        code = first["args"][0]
        compile(code, "wait-for-address", "exec")
        assert "$(LWS_LEADER_ADDRESS)" in " ".join(pods()[where].container["args"])
        assert 'os.environ["LWS_LEADER_ADDRESS"]' in code
        port = str(
            {p["name"]: p["containerPort"] for p in pods()[LEADER].container["ports"]}["nodes"]
        )
        words = ["serve", *commands()[where]]
        assert port in code
        assert build_parser("serve", words).parse_args(words).master_port == int(port)


# -- Docker Compose -------------------------------------------------------------------------------


def test_compose_builds_from_the_repository() -> None:
    found = service()
    context = (DEPLOY / found["build"]["context"]).resolve()

    assert context == ROOT
    assert (context / found["build"]["dockerfile"]).exists()
    assert all(port.endswith(":8000") for port in found["ports"])
    named = {volume.partition(":")[0] for volume in found["volumes"]}
    assert set(documents(COMPOSE)[0]["volumes"]) <= named


def test_compose_gives_the_container_what_the_readme_says() -> None:
    found = service()
    assert found["runtime"] == "habana"
    assert found["cap_add"] == ["SYS_NICE"]
    assert found["ipc"] == "host"
    assert "HABANA_VISIBLE_DEVICES" in found["environment"]


def test_every_manifest_is_one_of_these() -> None:
    """What is added is checked too."""
    assert {path.name for path in DEPLOY.glob("*.yaml")} == {KUBERNETES, SETS, RAY, COMPOSE}
    for name in (KUBERNETES, SETS, RAY, COMPOSE):
        assert list(yaml.safe_load_all((DEPLOY / name).read_text()))
