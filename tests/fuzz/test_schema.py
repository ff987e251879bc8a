"""schemathesis: requests made from the server's own OpenAPI schema, good ones and bad ones.

VLLM_TEST_FUZZ_EXAMPLES says how many per operation.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.entrypoints.openai.real_server import RealServer
from tests.fuzz.hostile import BODIES
from tests.limits import HANG_S

schemathesis = pytest.importorskip("schemathesis", reason="needs Python 3.11")
pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("unharmed")]
NUM_EXAMPLES = int(os.environ.get("VLLM_TEST_FUZZ_EXAMPLES", "12"))


def test_every_operation_answers_what_its_schema_allows_and_what_it_does_not(
    server: RealServer, schema: dict[str, Any]
) -> None:
    described = schemathesis.openapi.from_dict(schema)
    num_cases = 0
    for result in described.get_all_operations():
        operation = result.ok()
        # Both kinds of data: within the schema, and just outside of it.
        for mode in schemathesis.GenerationMode:
            num_cases += attacked(server, operation, mode)
    assert num_cases > 100


def attacked(server: RealServer, operation: Any, mode: Any) -> int:
    num_cases = 0

    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def attack(case: Any) -> None:
        nonlocal num_cases
        num_cases += 1
        if isinstance(case.body, dict):
            # So as to end soon.
            case.body.update(dict.fromkeys(("max_tokens", "max_output_tokens"), 4))
        answer = case.call(base_url=server.url, timeout=HANG_S)
        assert answer.status_code < 500 or answer.status_code in (501, 503), (
            answer.status_code,
            answer.text[:300],
            case.as_curl_command()[:2000],
        )

    with suppress(Unsatisfiable):  # no data is outside of the schema of a request without data
        attack()
    return num_cases


def test_the_schema_describes_bodies_and_errors_as_they_are(schema: dict[str, Any]) -> None:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert {"4XX", "5XX"} <= operation["responses"].keys(), (method, path)
            assert "422" not in operation["responses"], (method, path)
    for path in BODIES:
        assert schema["paths"][path]["post"]["requestBody"]["required"], path
