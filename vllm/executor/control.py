"""What executors ask of a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from vllm.device.observer import StepObserver
from vllm.distributed.place import Place
from vllm.errors import NotAvailable
from vllm.messages.cache import KVCacheLayout
from vllm.messages.facts import WorkerFacts
from vllm.messages.shapes import ShapeUsage
from vllm.messages.step import StepPlan, StepResult

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig


class RankStep(Protocol):
    """A step that a rank has begun."""

    def result(self) -> StepResult | None:
        """Wait for the step's values; None at once on ranks other than the driver.

        Raises what went wrong.
        """
        ...


class RankWorker(Protocol):
    """A rank's worker; see vllm.worker.worker for the one there is."""

    def observe(self, observer: StepObserver) -> None:
        """Tell it, too, what the runner does. Called before `load`."""
        ...

    def where(self) -> str:
        """The collective that the rank waits in, for people; "" if none. Any thread may ask."""
        ...

    def launch_shapes(self) -> list[ShapeUsage] | None:
        """None on devices that prepare no shapes."""
        ...

    def load(self) -> None: ...

    def facts(self) -> WorkerFacts: ...

    def bind_kv_cache(self, layout: KVCacheLayout) -> None: ...

    def execute(self, plan: StepPlan) -> RankStep: ...

    def close(self) -> None:
        """No step will come any more."""
        ...


class WorkerType(Protocol):
    """Makes a rank's worker in the rank's process; a class, so that it can be named to another."""

    def __call__(self, config: VllmConfig, place: Place) -> RankWorker: ...


Method = str | Callable[..., Any]

# What `call` may reach, so that a name from a client cannot pick any attribute of the worker.
CALLABLE = frozenset({"apply_model", "launch_shapes", "ping", "profile", "reload_weights"})


def invoke(worker: RankWorker, method: Method, args: tuple[Any, ...]) -> Any:
    """worker.method(*args), or method(worker, *args) of a function.

    Raises NotAvailable for a name that is not of the control plane.
    """
    if not isinstance(method, str):
        return method(worker, *args)
    if method not in CALLABLE:
        raise NotAvailable(
            f"workers have no method {method!r} to call; they have {', '.join(sorted(CALLABLE))}"
        )
    return getattr(worker, method)(*args)
