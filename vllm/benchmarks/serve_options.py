"""Options of `vllm bench serve` that are not about what is sent when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.benchmarks import plot
from vllm.benchmarks.backends import BACKENDS
from vllm.benchmarks.figures import parse_goals, parse_metrics, parse_percentiles
from vllm.config.kinds import FLOAT, INT, OBJECT, TEXTS
from vllm.config.option import option
from vllm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    backend: str = option(
        "openai",
        choices=tuple(BACKENDS),
        aliases=("--endpoint-type",),
        help="openai (or vllm): /v1/completions; openai-chat: /v1/chat/completions.",
    )
    base_url: str = option("", help="URL of the server, without /v1; else --host and --port.")
    host: str = option("127.0.0.1", help="Host of the server.")
    port: int = option(8000, low=1, high=65535, help="Port of the server.")
    endpoint: str = option("", help="Path to send to, if it is not that of --backend.")
    api_key: str = option(
        "", secret=True, help="Key to send. Also VLLM_API_KEY, then OPENAI_API_KEY."
    )
    header: tuple[str, ...] = option((), kind=TEXTS, help="Headers to send, as NAME=VALUE.")
    insecure: bool = option(False, help="Do not check the certificate of an https server.")
    model: str = option("", auto="the first served", help="Model to ask for.")
    served_model_name: str = option(
        "", help="Name of the model in requests, if it is not that of --model."
    )
    tokenizer: str = option(
        "", auto="the server's, by /tokenize", help="Directory or hub name of a tokenizer."
    )
    tokenizer_mode: str = option(
        "auto", choices=("auto", "slow"), help="slow: the tokenizer written in Python."
    )
    trust_remote_code: bool = option(False, help="Run code that comes with --tokenizer.")
    ready_check_timeout_sec: int = option(
        0, low=0, help="Seconds to wait for a server that is not there yet."
    )
    num_warmups: int = option(0, low=0, help="Requests sent before the measurement.")
    request_id_prefix: str = option("", help="Send X-Request-Id: this text and a number.")
    profile: bool = option(
        False,
        help="Have the server record a profile of the measurement; it needs "
        "VLLM_TORCH_PROFILER_DIR.",
    )

    def path(self) -> str:
        """Where requests go. Raises ConfigError."""
        if self.endpoint and not self.endpoint.startswith("/"):
            raise ConfigError(f"--endpoint {self.endpoint}: must start with /, as /v1/completions.")
        return self.endpoint or BACKENDS[self.backend].path

    def key(self) -> str:
        found = self.api_key or envs.VLLM_API_KEY or envs.inherited("OPENAI_API_KEY")
        return found or ""

    def headers(self) -> dict[str, str]:
        """Raises ConfigError."""
        found = {}
        for word in self.header:
            name, equals, value = word.partition("=")
            if not equals or not name.strip() or not word.isprintable():
                raise ConfigError(f"--header {word!r}: must be NAME=VALUE, on one line.")
            found[name.strip()] = value.strip()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    ignore_eos: bool = option(False, help="Generate on where the model would end.")
    temperature: float = option(0.0, low=0, help="0: the likeliest token.")
    top_p: float | None = option(None, kind=FLOAT, auto="the server's", help="Top-p sampling.")
    top_k: int | None = option(None, kind=INT, auto="the server's", help="Top-k sampling.")
    min_p: float | None = option(None, kind=FLOAT, auto="the server's", help="Min-p sampling.")
    frequency_penalty: float | None = option(
        None, kind=FLOAT, auto="the server's", help="Frequency penalty."
    )
    presence_penalty: float | None = option(
        None, kind=FLOAT, auto="the server's", help="Presence penalty."
    )
    repetition_penalty: float | None = option(
        None, kind=FLOAT, auto="the server's", help="Repetition penalty."
    )
    logprobs: int | None = option(
        None, kind=INT, low=0, auto="none", help="Log-probabilities to ask for, per token."
    )
    extra_body: dict[str, Any] = option(
        {}, kind=OBJECT, help="Fields to add to every request; they win over the others."
    )

    def fields(self, backend: str) -> dict[str, Any]:
        """What these add to a request's body."""
        body: dict[str, Any] = {"temperature": self.temperature}
        optional = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.logprobs is not None:
            is_chat = backend == "openai-chat"
            body |= (
                {"logprobs": True, "top_logprobs": self.logprobs}
                if is_chat
                else {"logprobs": self.logprobs}
            )
        return body | self.extra_body


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    percentile_metrics: str = option(
        "ttft,tpot,itl,e2el", help="Metrics to report, of ttft, tpot, itl and e2el."
    )
    metric_percentiles: str = option("99", help="Percentiles to report, as 50,90,99.")
    goodput: tuple[str, ...] = option(
        (),
        kind=TEXTS,
        help="Count requests that meet all of these, in milliseconds, as ttft:100 tpot:20.",
    )
    save_result: bool = option(False, help="Write the figures to a JSON file.")
    save_detailed: bool = option(False, help="Write those of every request, too.")
    append_result: bool = option(False, help="Add a line to the file instead of replacing it.")
    result_dir: str = option("", auto="the current one", help="Directory of the file.")
    result_filename: str = option(
        "",
        aliases=("--output-json",),
        auto="made of the run's facts",
        help="Name of the file; given alone, it means --save-result, too.",
    )
    metadata: tuple[str, ...] = option(
        (), kind=TEXTS, help="Facts to write with the figures, as NAME=VALUE."
    )
    label: str = option("", help="Name of the run, in the file and its name.")
    plot: str = option("", help="Draw times to first token and between tokens: an SVG file.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")

    def check(self) -> None:
        """Raises ConfigError for what would otherwise fail after the measurement."""
        parse_metrics(self.percentile_metrics)
        parse_percentiles(self.metric_percentiles)
        parse_goals(self.goodput)
        self.facts()
        if self.result_dir and not Path(self.result_dir).is_dir():
            raise ConfigError(f"--result-dir {self.result_dir}: there is no such directory.")
        folder = Path(self.result_dir, self.result_filename).parent
        if self.result_filename and not folder.is_dir():
            raise ConfigError(f"--result-filename {self.result_filename}: no directory {folder}.")
        if self.plot:
            plot.check_path(self.plot)

    def facts(self) -> dict[str, str]:
        """Raises ConfigError."""
        found = {}
        for word in self.metadata:
            name, equals, value = word.partition("=")
            if not equals or not name:
                raise ConfigError(f"--metadata {word}: must be NAME=VALUE.")
            found[name] = value
        return found

    def path(self, result: dict[str, Any]) -> Path | None:
        """Where to save; None: nowhere."""
        if self.result_filename:
            return Path(self.result_dir, self.result_filename)
        if not (self.save_result or self.append_result):
            return None
        concurrency = f"-concurrency{result['max_concurrency']}" * bool(result["max_concurrency"])
        model = Path(result["model_id"]).name
        moment = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{self.label or result['backend']}-{result['request_rate']}qps{concurrency}"
        return Path(self.result_dir, f"{name}-{model}-{moment}.json")

    def save(self, path: Path, result: dict[str, Any]) -> None:
        with path.open("a" if self.append_result else "w", encoding="utf-8") as file:
            indent = None if self.append_result else 2
            file.write(json.dumps(result, indent=indent) + "\n")
