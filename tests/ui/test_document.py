"""The document and its routes, without a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.entrypoints.openai.conftest import make_context
from tests.entrypoints.openai.fakes import FakeEngine, byte_tokenizer
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.ui.document import FOLDER, MODULES, STYLES, joined, load_document
from vllm.messages.engine import EngineStats
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats
from vllm.metrics.stats import IterationStats


def client(engine: FakeEngine, live: LiveStats | None, **options: Any) -> TestClient:
    context = make_context(engine, **options)
    # What the page says of a server, beyond what its other routes ask of a configuration.
    config: Any = context.config
    config.model.dtype = "torch.bfloat16"
    config.device = SimpleNamespace(device="cpu")
    config.cache = SimpleNamespace(block_size=16)
    metrics = PrometheusStats("fake", 4096, [{"block_size": "16"}])
    return TestClient(build_app(context, metrics, LoggingStats(10.0), live))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(byte_tokenizer())


@pytest.fixture
def server(engine: FakeEngine) -> TestClient:
    return client(engine, LiveStats())


def test_every_source_is_part_of_the_document() -> None:
    sources = {path.name for path in FOLDER.iterdir() if path.suffix in (".js", ".css")}
    assert sources == {*MODULES, *STYLES}


def test_modules_become_one_without_imports_and_exports() -> None:
    one = (
        'import { a } from "./a.js";\nimport {\n  b,\n} from "./b.js";\n\nexport const c = a(b);\n'
    )
    assert joined([one]).strip() == "const c = a(b);"


def test_every_import_names_what_an_earlier_module_exports() -> None:
    exported: dict[str, set[str]] = {}
    for name in MODULES:
        text = (FOLDER / name).read_text()
        for names, source in re.findall(r'^import \{([^}]*)\} from "\./([\w.]+)";', text, re.M):
            wanted = {word.strip() for word in names.split(",") if word.strip()}
            assert wanted <= exported[source], (name, source)
        exported[name] = set(re.findall(r"^export (?:async )?[\w*]+\*? (\w+)", text, re.M))


def test_no_name_at_the_top_of_a_module_is_used_twice() -> None:
    script = joined([(FOLDER / name).read_text() for name in MODULES])
    names = re.findall(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", script, re.M)
    assert len(names) == len(set(names))


def test_the_policy_lets_only_what_is_in_the_document_run(server: TestClient) -> None:
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = load_document().body.decode()
    links = re.findall(r"https?://[^\s'\"`)\\]+", text)
    assert set(links) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:src|href)=[\"'](?!data:|#)", text)
    assert "innerHTML" not in text


def test_the_page_is_sent_once_and_compressed(server: TestClient) -> None:
    answer = server.get("/", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text == load_document().body.decode()
    assert int(answer.headers["content-length"]) < 30_000
    again = server.get("/", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = server.get("/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == gzip.decompress(load_document().compressed)


def test_page_and_figures_need_no_key(engine: FakeEngine) -> None:
    server = client(engine, LiveStats(), api_key=("secret",))
    assert server.get("/").status_code == 200
    assert server.get("/ui/live").json()["facts"]["needs_key"] is True
    assert "secret" not in server.get("/ui/live").text
    assert server.get("/v1/models").status_code == 401


def test_there_is_no_page_when_it_is_switched_off(engine: FakeEngine) -> None:
    server = client(engine, None)
    assert server.get("/").status_code == 404
    assert server.get("/ui/live").status_code == 404


def test_figures_are_those_of_the_engine(engine: FakeEngine) -> None:
    live = LiveStats([101])
    live.record(EngineStats(num_running=3, num_blocks=101, kv_usage=0.5), IterationStats())
    answer = client(engine, live).get("/ui/live").json()
    assert answer["is_alive"] is True
    assert answer["facts"]["models"] == ["fake", "alias"]
    assert answer["facts"]["max_model_len"] == 4096
    assert (answer["facts"]["num_engines"], len(answer["facts"]["ranks"])) == (1, 1)
    assert answer["live"]["num_running"] == 3
    assert answer["live"]["num_used_blocks"] == 50


def test_several_engines_are_one_with_the_ranks_of_all(engine: FakeEngine) -> None:
    engine.client.cores *= 2
    live = LiveStats([101, 201])
    for core, num_blocks in enumerate((101, 201)):
        stats = EngineStats(num_running=3, num_blocks=num_blocks, kv_usage=0.5)
        live.record(stats, IterationStats(), core)
    answer = client(engine, live).get("/ui/live").json()
    assert (answer["facts"]["num_engines"], len(answer["facts"]["ranks"])) == (2, 2)
    assert answer["live"]["num_running"] == 6
    assert (answer["live"]["num_used_blocks"], answer["live"]["num_blocks"]) == (150, 300)


def test_a_dead_engine_is_said_to_be(engine: FakeEngine) -> None:
    engine.is_dead = True
    assert client(engine, LiveStats()).get("/ui/live").json()["is_alive"] is False


def test_where_to_go_on_must_be_a_number(server: TestClient) -> None:
    assert server.get("/ui/live?after=x").status_code == 400
    assert server.get(f"/ui/live?after={10**30}").json()["live"]["samples"] == []


def test_modules_keep_the_line_length_of_the_repository() -> None:
    lines = [(name, line) for name in MODULES for line in (FOLDER / name).read_text().split("\n")]
    assert [(name, line) for name, line in lines if len(line) > 100] == []
