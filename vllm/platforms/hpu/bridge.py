"""The Gaudi plugin of PyTorch: whether it is there, what it offers, and how it is set up.

Nothing here imports the plugin until a function is called that needs it: processes that never touch
a device, such as the API server, do not pay for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Final

from vllm import envs
from vllm.errors import ConfigError
from vllm.logger import init_logger

logger = init_logger(__name__)

_PLUGIN: Final = "habana_frameworks"
_DISTRIBUTION: Final = "habana-torch-plugin"
_RECIPES: Final = "PT_HPU_RECIPE_CACHE_CONFIG"
_RECIPES_MB: Final = 8192  # the oldest are deleted when they are more
_NO_TENSOR_CACHE: Final = "PT_HPUGRAPH_DISABLE_TENSOR_CACHE"


def is_installed() -> bool:
    return importlib.util.find_spec(_PLUGIN) is not None


def is_lazy() -> bool:
    """Whether ops are accumulated to graphs (PT_HPU_LAZY_MODE=1) instead of run one by one."""
    return envs.inherited("PT_HPU_LAZY_MODE") == "1"


@cache
def load() -> Any:
    """The plugin, `habana_frameworks.torch`. Raises ConfigError if there is none that works."""
    if not is_installed():
        raise ConfigError(
            "--device hpu: the Gaudi plugin of PyTorch (habana-torch-plugin) is not installed in "
            "this Python. Use a container of the Gaudi software, or --device cpu. To try the HPU "
            "platform without a Gaudi, see docs/hpu_emulator.md."
        )
    # Before the import, which reads them. The plugin's own default has changed over its versions.
    for name, value in (
        ("PT_HPU_LAZY_MODE", "0"),
        ("PT_HPU_WEIGHT_SHARING", "0"),
        ("PT_HPU_ENABLE_LAZY_COLLECTIVES", "true"),
        ("PT_HPU_FORCE_TANH_FOR_GELU", "false"),  # a model's config says which gelu it means
    ):
        if envs.inherited(name) is None:
            envs.pass_on(name, value)
    try:
        return importlib.import_module(f"{_PLUGIN}.torch")
    except (ImportError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device hpu: the Gaudi plugin {version()} cannot be loaded: {error}. Its version "
            "must be the one made for this PyTorch and for the driver of this machine (hl-smi "
            "shows it)."
        ) from error


@cache
def version() -> str:
    """Of the plugin, such as 1.22.0.494."""
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def keep_recipes(directory: str) -> None:
    """Have the plugin keep compiled recipes there, unless the user has set where. Before `load`.

    Raises ConfigError.
    """
    if envs.inherited(_RECIPES) is not None:
        return
    path = Path(directory).expanduser().absolute()
    if "," in str(path):
        raise ConfigError(f"--recipe-cache {directory}: the plugin takes no path with a comma.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--recipe-cache {directory}: the directory cannot be made: {error.strerror}. Name one "
            "on a local disk that this user may write to."
        ) from error
    if load.cache_info().currsize:
        logger.warning_once(
            "--recipe-cache %s: the Gaudi plugin is loaded in this process already and keeps no "
            "recipes; only processes started from now on do.",
            directory,
        )
    envs.pass_on(_RECIPES, f"{path},false,{_RECIPES_MB}")


def check_tensor_cache() -> None:
    """Raises ConfigError where the user turns it off: see `keep_tensor_cache`."""
    text = envs.inherited(_NO_TENSOR_CACHE)
    if is_lazy() and text not in (None, "0", "false"):
        raise ConfigError(
            f"{_NO_TENSOR_CACHE}={text}: HPU graphs of a pipeline stage need the tensor cache. "
            "Unset the variable, or use --pipeline-parallel-size 1."
        )


def keep_tensor_cache() -> None:
    """Have HPU graphs keep their inputs, as the plugin demands of pipeline stages. Before `load`.

    Raises ConfigError.
    """
    check_tensor_cache()
    if is_lazy():
        envs.pass_on(_NO_TENSOR_CACHE, "0")


def num_devices() -> int:
    """Devices that this process may use; 0 without plugin or driver."""
    if not is_installed():
        return 0
    hpu = load().hpu
    return int(hpu.device_count()) if hpu.is_available() else 0


def module(name: str) -> Any:
    """A part of the plugin, such as "core" or "hpu.metrics"."""
    load()
    return importlib.import_module(f"{_PLUGIN}.torch.{name}")


def require_devices() -> int:
    """Devices that this process may use. Raises ConfigError if there are none."""
    load()
    count = num_devices()
    if count == 0:
        raise ConfigError(
            "--device hpu: no Gaudi is visible. Check that the driver is loaded (hl-smi lists the "
            "devices) and that the container was started with them (--runtime=habana, "
            "HABANA_VISIBLE_DEVICES), or use --device cpu."
        )
    return count


def open_device(index: int) -> Any:
    """Take device `index`, or the module that HLS_MODULE_ID names; -> `torch.hpu`.

    Raises RuntimeError or ValueError.
    """
    hpu = load().hpu
    hpu.set_device(index)
    hpu.init()
    return hpu


def acquire(index: int) -> Any:
    """Take device `index` for this process; -> `torch.hpu`. Raises ConfigError."""
    count = require_devices()
    if index >= count:
        raise ConfigError(
            f"--device hpu: device {index} was asked for, but this process sees {count}. Lower the "
            "number of ranks, or widen HABANA_VISIBLE_MODULES."
        )
    try:
        hpu = open_device(index)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--device hpu: device {index} cannot be acquired: {error}. Each device belongs to one "
            "process: end the one that holds it (hl-smi shows it), or choose others with "
            "HABANA_VISIBLE_MODULES or HLS_MODULE_ID."
        ) from error
    logger.info("Device: %s, plugin %s, %s", hpu.get_device_name(), version(), mode_name())
    return hpu


def mode_name() -> str:
    return "lazy mode" if is_lazy() else "eager mode with torch.compile"


@cache
def is_gaudi3() -> bool:
    if num_devices() == 0:
        return False
    experimental = module("utils.experimental")
    return bool(experimental._get_device_type() == experimental.synDeviceType.synDeviceGaudi3)
