"""examples/deploy/ray_serve.py on emulated Gaudis: a replica has the module that Ray gives it."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.deployment.serving import deployed
from tests.engine_e2e.ray_cluster import VARIABLES, RayCluster
from tests.engine_e2e.test_rank_faults import MARK
from tests.hpu_emulator.conftest import Emulated, emulated

__all__ = ["emulated"]
pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
pytestmark = [pytest.mark.engine, pytest.mark.product]

FLAGS = "--min-replicas=2 --max-replicas=2 --max-model-len=512 --max-num-seqs=4 --enforce-eager"


def test_replicas_share_the_modules_of_a_machine(emulated: Emulated) -> None:
    """--device auto: the cluster has HPUs."""
    given = emulated.environment(VLLM_SKIP_WARMUP="true", **VARIABLES)
    cluster = RayCluster()
    try:
        modules = {"HABANA_VISIBLE_MODULES": "0,1"}
        resources = json.dumps({"HPU": 2})
        cluster.add({**given, **modules}, **{"num-cpus": 6, "resources": resources})
        variables = {
            **given,
            MARK: uuid.uuid4().hex,
            "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY": MARK,
            "RAY_ADDRESS": cluster.address,
        }
        with deployed(FLAGS.split(), variables, 2) as service:
            texts = set()
            for session in service.sessions(2).values():
                answer = service.complete(session)
                assert answer.status == 200, answer
                texts.add(answer.body["choices"][0]["text"])
                # Blocks of the HPU; those of the CPU have 16 tokens.
                assert 'block_size="128"' in service.ask("/metrics", session=session).body
            assert len(texts) == 1
    finally:
        cluster.stop()
