"""Which module of the box each rank gets, and that no other engine of ours has it.

A module belongs to one process. Every module that an engine takes is locked in a file, by the
process that starts the ranks, so that the locks vanish with it whatever becomes of it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vllm import envs
from vllm.distributed.place import Place
from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu import bridge

logger = init_logger(__name__)

VISIBLE: Final = "HABANA_VISIBLE_MODULES"
CHOSEN: Final = "HLS_MODULE_ID"
_SIZES: Final = "--tensor-parallel-size or --pipeline-parallel-size"
# Modules of a box of eight that are joined for a group of their own, by the size of the group.
WIRED: Final[Mapping[int, Sequence[tuple[int, ...]]]] = {
    1: tuple((module,) for module in range(8)),
    2: ((0, 1), (2, 3), (4, 5), (6, 7)),
    4: ((0, 1, 2, 3), (4, 5, 6, 7)),
    8: ((0, 1, 2, 3, 4, 5, 6, 7),),
}


def visible_modules(text: str | None, count: int) -> list[int]:
    """Those that HABANA_VISIBLE_MODULES lists, or all `count` there are. Raises ConfigError."""
    if not text or not text.strip():
        return list(range(count))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ConfigError(
            f"{VISIBLE}={text}: must be the ids of modules, separated by commas and each once, "
            "such as 0,1. Correct it, or unset it for all modules."
        )
    return [int(word) for word in words]


def module_of(local_rank: int, visible: Sequence[int]) -> int:
    """That of a process which torchrun has started, as the bridge numbers them.

    Raises ConfigError.
    """
    if local_rank >= len(visible):
        raise ConfigError(
            f"LOCAL_RANK={local_rank}: each process that torchrun starts needs a module of its "
            f"own, and {len(visible)} are visible ({_listed(visible)}). Lower {_SIZES}, or widen "
            f"{VISIBLE}."
        )
    return visible[local_rank]


def chosen_module(text: str | None, visible: Sequence[int], num_ranks: int) -> int | None:
    """The one that the user's HLS_MODULE_ID asks for. Raises ConfigError."""
    if text is None or text.strip() in ("", "-1"):
        return None
    if num_ranks > 1:
        raise ConfigError(
            f"{CHOSEN}={text}: names one module, and {num_ranks} ranks need one each. Unset it; "
            f"{VISIBLE} lists the modules that ranks may take."
        )
    if not text.strip().isdecimal() or int(text) not in visible:
        raise ConfigError(
            f"{CHOSEN}={text}: is not one of the visible modules, {_listed(visible)}. Name one of "
            f"them, widen {VISIBLE}, or unset {CHOSEN}."
        )
    return int(text)


def choose(num_ranks: int, visible: Sequence[int], free: Collection[int]) -> list[int]:
    """A free module for each rank, by rank; joined ones where there are such.

    There must be enough. Groups that other engines could use whole are broken last.
    """
    usable = [module for module in visible if module in free]
    groups = [group for group in WIRED.get(num_ranks, ()) if set(group) <= set(usable)]
    if groups:
        best = min(groups, key=lambda group: _breaks(group, usable))
        return sorted(best, key=usable.index)
    return usable[:num_ranks]


def _breaks(group: Collection[int], free: Collection[int]) -> list[int]:
    """How many modules are free in the greater groups around this one, the smallest group first."""
    return [
        sum(module in free for module in around)
        for size in sorted(WIRED)
        if size > len(group)
        for around in WIRED[size]
        if set(group) <= set(around)
    ]


def warn_of_wiring(modules: Sequence[int]) -> None:
    size = len(modules)
    if size not in WIRED:
        logger.warning(
            "%d ranks: no modules of a box are joined for a group of this size; 2, 4 and 8 are. "
            "HCCL may be slow with modules %s, or refuse them.",
            size,
            _listed(modules),
        )
    elif size > 1 and tuple(sorted(modules)) not in WIRED[size]:
        logger.warning(
            "%d ranks: no joined group of modules is visible and free (groups of %d: %s). HCCL may "
            "be slow with modules %s, or refuse them.",
            size,
            size,
            " ".join("{" + ",".join(map(str, group)) + "}" for group in WIRED[size]),
            _listed(modules),
        )


def _listed(modules: Sequence[int]) -> str:
    return ", ".join(map(str, modules)) or "none"


class ModuleLocks:
    """A file per module, which an engine that has the module holds locked."""

    def __init__(self, directory: Path | None) -> None:
        """None: nothing can be locked, and everything counts as free."""
        self.directory = directory

    @classmethod
    def of_machine(cls) -> ModuleLocks:
        """Those that all users of this machine share; a directory that fails is a warning."""
        named = Environment().VLLM_HPU_MODULE_LOCKS
        directory = Path(named or Path(tempfile.gettempdir()) / "vllm-hpu-modules")
        try:
            _make_shared(directory)
        except OSError as error:
            logger.warning(
                "%s: modules cannot be locked there (%s), so that engines which start at the same "
                "time may take the same one. VLLM_HPU_MODULE_LOCKS names another directory.",
                directory,
                error.strerror,
            )
            return cls(None)
        return cls(directory)

    def take(self, modules: Sequence[int]) -> dict[int, int]:
        """Locks those that are free; -> descriptors by module, -1 where there are no locks."""
        found = {}
        for module in modules:
            try:
                fd = -1 if self.directory is None else _opened(self.directory / f"{module}.lock")
            except OSError as error:
                logger.warning("Module %d cannot be locked: %s", module, error)
                fd = -1
            if fd < 0 or _is_locked(fd):
                found[module] = fd
            else:
                os.close(fd)
        return found

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Alone among engines that choose, which look at more modules than they take."""
        fd = -1
        try:
            if self.directory is not None:
                fd = _opened(self.directory / "choosing.lock")
                fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("Modules are chosen without a lock: %s", error)
        try:
            yield
        finally:
            release({-1: fd})


def report() -> list[tuple[str, str]]:
    """Modules that are visible, and those of them that engines have."""
    try:
        visible = visible_modules(envs.inherited(VISIBLE), bridge.num_devices())
    except ConfigError as error:
        return [("visible modules", str(error))]
    held = ModuleLocks.of_machine().take(visible)
    release(held)
    taken = [module for module in visible if module not in held]
    return [("visible modules", _listed(visible)), ("modules of engines", _listed(taken))]


def release(locks: Mapping[int, int]) -> None:
    for fd in locks.values():
        if fd >= 0:
            os.close(fd)


def _make_shared(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
        directory.chmod(0o1777)  # whatever the umask
    except FileExistsError:
        os.listdir(directory)


def _opened(path: Path) -> int:
    """For reading only, which is enough to lock: the file may be another user's."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # by another engine, just now
        return os.open(path, flags)
    os.fchmod(fd, 0o644)
    return fd


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class OwnModule:
    """The module that is the device of this process; once acquired, until the process ends."""

    def __init__(self) -> None:
        self.module: int | None = None
        self._asked: str | None = None  # HLS_MODULE_ID before it was set here
        self._is_set = False
        self._locks: dict[int, int] = {}

    def asked(self) -> str | None:
        """HLS_MODULE_ID as the user has set it."""
        return self._asked if self._is_set else envs.inherited(CHOSEN)

    def name(self, module: int | None) -> None:
        """Tell the plugin which module the device of this process is; None: any."""
        if not self._is_set:
            self._asked, self._is_set = envs.inherited(CHOSEN), True
        envs.pass_on(CHOSEN, None if module is None else str(module))

    def keep(self, module: int, locks: Mapping[int, int]) -> None:
        """The device is acquired; its lock lasts as long."""
        self.module = module
        self._locks.update(locks)


OWN: Final = OwnModule()


@contextmanager
def set_aside(
    ranks: Sequence[int], visible: Sequence[int], is_in_process: bool
) -> Iterator[list[int]]:
    """A module for each of `ranks`, that no engine of ours takes meanwhile.

    `is_in_process`: the only rank is this process, which has one device for all of its engines.
    Raises ConfigError.
    """
    if is_in_process and OWN.module is not None:
        yield [OWN.module]
        return
    num_ranks = len(ranks)
    if num_ranks > len(visible):
        raise ConfigError(
            f"{_need(num_ranks)}, and {len(visible)} are visible ({_listed(visible)}). Lower "
            f"{_SIZES}, or widen {VISIBLE}."
        )
    asked = chosen_module(OWN.asked(), visible, num_ranks)
    allowed = visible if asked is None else [asked]
    locks = ModuleLocks.of_machine()
    with locks.choosing():
        held = locks.take(allowed)
        if len(held) < num_ranks:
            release(held)
            raise _too_few(num_ranks, allowed, held, locks)
        modules = choose(num_ranks, allowed, held)
        release({module: fd for module, fd in held.items() if module not in modules})
    held = {module: held[module] for module in modules}
    warn_of_wiring(modules)
    pairs = zip(ranks, modules, strict=True)
    logger.info("Modules: %s", ", ".join(f"rank {rank} on module {m}" for rank, m in pairs))
    try:
        yield modules
    finally:
        if OWN.module in held and is_in_process:
            OWN.keep(modules[0], held)
        else:
            release(held)


def _too_few(
    num_ranks: int, allowed: Sequence[int], free: Collection[int], locks: ModuleLocks
) -> ConfigError:
    busy = [module for module in allowed if module not in free]
    lower = f"lower {_SIZES}, " if num_ranks > 1 else ""
    return ConfigError(
        f"{_need(num_ranks)}, and {len(free)} of {len(allowed)} are free: other engines have "
        f"modules {_listed(busy)} (locked in {locks.directory}). End one of them, {lower}or widen "
        f"{VISIBLE}."
    )


def _need(num_ranks: int) -> str:
    if num_ranks == 1:
        return "--device hpu: an engine needs a module of its own"
    return f"--device hpu with {num_ranks} ranks: each rank needs a module of its own"


def acquire(place: Place) -> None:
    """Make the module set aside for a rank the device of this process. Raises ConfigError.

    The only rank of an engine on this machine takes another free one where a process that is not
    ours has it.
    """
    if OWN.module is not None:
        assert OWN.module == place.device, (OWN.module, place)
        return
    # Another module may be named there: that of the process that starts ranks.
    is_chosen = (OWN.asked() or "").strip() == str(place.device)
    OWN.name(place.device)
    try:
        bridge.open_device(0)
    except (RuntimeError, ValueError) as error:
        if 1 in (place.world_size, place.local_size) and not is_chosen and _acquire_another(place):
            return
        raise ConfigError(
            f"--device hpu: module {place.device} cannot be acquired: {error}. "
            "Each module belongs to one process: end the one that holds it (hl-smi shows it), or "
            f"choose others with {VISIBLE}."
        ) from error
    OWN.keep(place.device, {})


def _acquire_another(place: Place) -> bool:
    taken, rank = place.device, f"rank {place.rank}"
    locks = ModuleLocks.of_machine()
    visible = visible_modules(envs.inherited(VISIBLE), bridge.num_devices())
    for module in visible:
        if module == taken or not (held := locks.take([module])):
            continue
        OWN.name(module)
        try:
            bridge.open_device(0)
        except (RuntimeError, ValueError):
            release(held)
            continue
        OWN.keep(module, held)
        logger.info("Module %d belongs to another process: %s is on module %d", taken, rank, module)
        return True
    if not envs.inherited(VISIBLE):
        # A container with some of a box's devices need not have the modules that count from 0.
        OWN.name(None)
        try:
            bridge.open_device(0)
        except (RuntimeError, ValueError):
            pass
        else:
            OWN.keep(taken, {})
            logger.info("Module %d is not there: %s is on one that the driver chose", taken, rank)
            return True
    OWN.name(taken)
    return False
