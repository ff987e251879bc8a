"""From the name of a model to a directory on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from vllm.errors import ConfigError, LoadError
from vllm.logger import init_logger

logger = init_logger(__name__)

SAFETENSORS: Final = "*.safetensors"
TOKENIZER_FILES: Final = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_WEIGHTS: Final = {
    "auto": (SAFETENSORS,),  # or those of pt, if there is no safetensors file
    "safetensors": (SAFETENSORS,),
    "pt": ("*.bin", "*.pt"),
    "dummy": (),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where to look for what `name` means."""

    name: str
    flag: str  # that gave the name, for errors
    revision: str = "main"
    download_dir: str | None = None
    token: str | None = None
    ignore: tuple[str, ...] = ()  # patterns of files not to fetch


def no_model(flag: str = "--model") -> ConfigError:
    """There is no default: what to name instead."""
    return ConfigError(
        f"{flag} is missing, and there is no default: give a local directory or a name on the "
        "Hugging Face hub. A small one to try is in these sources: `vllm serve "
        "examples/models/tiny-story`."
    )


def locate(source: Source, files: Sequence[str]) -> Path:
    """A local directory with the files of `source.name` that match; downloaded if need be.

    Raises ConfigError if the name means nothing, LoadError if it cannot be fetched.
    """
    if not source.name:
        raise no_model(source.flag)
    path = Path(source.name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ConfigError(
            f"{source.flag} {source.name}: is a file. Give the directory that holds config.json."
        )
    if not _is_hub_name(source.name):
        raise ConfigError(
            f"{source.flag} {source.name}: there is no such directory, and it is no name on the "
            "hub (those look like organisation/model)."
        )
    return _from_hub(source, files)


def weight_patterns(load_format: str) -> tuple[str, ...]:
    return (*TOKENIZER_FILES, *_WEIGHTS[load_format])


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name.startswith((".", "/", "~")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _from_hub(source: Source, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = source.download_dir or constants.HF_HUB_CACHE
    fetch = partial(
        snapshot_download,
        source.name,
        revision=source.revision,
        cache_dir=source.download_dir,
        allow_patterns=[*files],
        ignore_patterns=[*source.ignore],
    )
    try:
        cached: Path | None = Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        cached = None
    if constants.HF_HUB_OFFLINE:
        if cached is not None:
            return cached
        raise LoadError(
            f"{source.flag} {source.name}: no such directory here, and not in the cache {cache} "
            f"(revision {source.revision}); the hub was not asked because HF_HUB_OFFLINE is set. "
            "Give a local directory, or unset HF_HUB_OFFLINE to download."
        )
    try:
        names = _files_on_hub(source)
    except _Unreachable as problem:
        if cached is not None:
            logger.warning("Using the cached %s: %s", source.name, problem)
            return cached
        raise LoadError(
            f"{source.flag} {source.name}: no such directory here, and not in the cache {cache} "
            f"(revision {source.revision}); {problem}. Give a local directory, or check the name, "
            "the network and the login (HF_TOKEN)."
        ) from None
    wanted = [*files]
    if SAFETENSORS in wanted and not any(name.endswith(".safetensors") for name in names):
        wanted += _WEIGHTS["pt"]
    return Path(fetch(token=source.token, allow_patterns=wanted))


class _Unreachable(Exception):
    """Why the hub cannot give a model."""


def _files_on_hub(source: Source) -> list[str]:
    """Names of a model's files. Raises _Unreachable, and soon."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # The client of the hub retries for minutes; one request without retries comes first.
        httpx.head(constants.ENDPOINT, timeout=5.0)
        api = HfApi(token=source.token)
        info = api.model_info(source.name, revision=source.revision, timeout=10.0)
    except HfHubHTTPError as error:
        said = str(error).splitlines()[0]
        raise _Unreachable(f"{constants.ENDPOINT} refused it: {said}") from None
    except (httpx.HTTPError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise _Unreachable(f"{constants.ENDPOINT} cannot be reached ({reason})") from None
    return [file.rfilename for file in info.siblings or ()]
