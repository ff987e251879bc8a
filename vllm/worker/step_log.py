"""The log of single steps, by topics of VLLM_DEBUG."""

from __future__ import annotations

import time

from vllm.device.launch import Launch
from vllm.device.observer import StepObserver
from vllm.envs import Environment
from vllm.logger import init_logger
from vllm.messages.step import StepPlan

logger = init_logger(__name__)


class StepLog(StepObserver):
    """Topic `steps`: a line per step, after its work was queued."""

    def __init__(self) -> None:
        self._begun_s = 0.0
        self._num_launches = 0
        self._ended_s: float | None = None  # the last step

    def step_begins(self, plan: StepPlan) -> None:
        self._begun_s, self._num_launches = time.perf_counter(), 0

    def launch_begins(self, launch: Launch) -> None:
        self._num_launches += 1

    def step_ends(self, plan: StepPlan) -> None:
        now_s = time.perf_counter()
        num_decodes = int((plan.counts == 1).sum())
        idle_s = 0.0 if self._ended_s is None else self._begun_s - self._ended_s
        logger.info(
            "Step %d: %d rows with one token, %d with more, %d tokens, %d admitted, %d released, "
            "%d new blocks, %d launches, queued in %.2f ms, %.2f ms after the step before",
            plan.step,
            num_decodes,
            plan.num_rows - num_decodes,
            plan.num_tokens,
            len(plan.admissions),
            len(plan.releases),
            len(plan.blocks),
            self._num_launches,
            1e3 * (now_s - self._begun_s),
            1e3 * idle_s,
        )
        self._ended_s = now_s


class ForwardLog(StepObserver):
    """Topic `fwd`: a line per launch of the model, after its work was queued."""

    def __init__(self) -> None:
        self._step = -1
        self._begun_s = 0.0
        self._drawing_s: float | None = None

    def step_begins(self, plan: StepPlan) -> None:
        self._step = plan.step

    def launch_begins(self, launch: Launch) -> None:
        self._begun_s, self._drawing_s = time.perf_counter(), None

    def drawing_begins(self, launch: Launch) -> None:
        self._drawing_s = time.perf_counter()

    def launch_ends(self, launch: Launch) -> None:
        now_s = time.perf_counter()
        model_s = (self._drawing_s or now_s) - self._begun_s
        real_tokens = int(launch.counts_np.sum())
        logger.info(
            "Step %d, %s: %d of %d rows, %d of %d tokens, longest context %d, model queued in "
            "%.2f ms, sampling in %.2f ms",
            self._step,
            launch.key,
            len(launch.plan_rows_np),
            launch.num_rows,
            real_tokens,
            launch.num_tokens,
            int((launch.starts_np + launch.counts_np).max()),
            1e3 * model_s,
            1e3 * (now_s - self._begun_s - model_s),
        )


def step_logs(env: Environment) -> list[StepObserver]:
    """Those that VLLM_DEBUG asks for."""
    kinds: dict[str, type[StepObserver]] = {"steps": StepLog, "fwd": ForwardLog}
    topics = env.VLLM_DEBUG.split(",")
    return [kind() for topic, kind in kinds.items() if topic in topics]
