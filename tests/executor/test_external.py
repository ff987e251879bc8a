"""Processes of an external launcher, here threads: what each says and hears of the others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from torch.distributed import HashStore

from tests.executor.fake_worker import fake_plan
from tests.limits import HANG_S, wait_until
from vllm.distributed.launched import Launched
from vllm.executor.base import ExecutorDied
from vllm.executor.external import meeting
from vllm.executor.external.daemon import DaemonThread
from vllm.executor.external.meeting import Peer, meet
from vllm.executor.external.siblings import Siblings
from vllm.executor.nodes.link import Kind, Link
from vllm.messages.rank import RankError
from vllm.messages.sibling import Fault, Hello, planned
from vllm.messages.step import Admission, StepPlan, StepResult
from vllm.sampling_params import SamplingParams

DRIVER, OTHER, THIRD = 1, 0, 2  # not by number: the last stage drives


def connection() -> tuple[Link, Link]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = Link(socket.create_connection(server.getsockname()))
        return here, Link(server.accept()[0])


@pytest.fixture
def three() -> Iterator[dict[int, Siblings]]:
    """Three ranks, by number."""
    ends = {rank: connection() for rank in (OTHER, THIRD)}
    links: dict[int, Mapping[int, Link]] = {
        DRIVER: {rank: here for rank, (here, _) in ends.items()},
        OTHER: {DRIVER: ends[OTHER][1]},
        THIRD: {DRIVER: ends[THIRD][1]},
    }
    made = {
        rank: Siblings(
            rank,
            DRIVER,
            3,
            {other: Peer(link, f"rank {other} (of the test)") for other, link in some.items()},
            limit_s=HANG_S,
        )
        for rank, some in links.items()
    }
    yield made
    for siblings in made.values():
        siblings.leave()


def result_of(step: int) -> StepResult:
    return StepResult(step, np.asarray([step], np.int32))


def test_all_see_what_each_shows(three: dict[int, Siblings]) -> None:
    for turn in (b"a", b"b"):
        with ThreadPoolExecutor(3) as pool:
            shown = [
                pool.submit(one.gather, turn + b"%d" % rank, HANG_S, "come")
                for rank, one in three.items()
            ]
        assert [one.result() for one in shown] == [[turn + b"%d" % rank for rank in range(3)]] * 3


def test_values_of_the_driver_are_those_of_all_and_in_any_order(
    three: dict[int, Siblings],
) -> None:
    for one in three.values():
        for step in (1, 2):
            one.plan(planned(fake_plan(step)))
    for step in (1, 2):
        three[DRIVER].publish(result_of(step))
    for one in three.values():
        assert [one.values_of(step).token_ids.tolist() for step in (2, 1)] == [[2], [1]]


@pytest.mark.parametrize("failing", [DRIVER, OTHER])
def test_an_error_of_one_is_one_of_all_with_its_rank(
    three: dict[int, Siblings], failing: int
) -> None:
    three[failing].fail(MemoryError("no memory for this step"))
    for rank, one in three.items():
        said = "^no memory" if rank == failing else f"^rank {failing}: no memory"
        with pytest.raises(MemoryError, match=said):
            one.values_of(1)
        with pytest.raises(MemoryError):
            one.check()


@pytest.mark.parametrize("gone", [DRIVER, OTHER])
def test_a_death_is_told_to_all_and_counts_more_than_what_comes_of_it(
    three: dict[int, Siblings], gone: int
) -> None:
    left = {rank: one for rank, one in three.items() if rank != gone}
    left[THIRD].fail(RuntimeError("Connection closed by peer"))  # as gloo says it
    three[gone]._is_closing = True  # so that it says nothing more
    late = threading.Timer(0.1, lambda: [p.link.shut() for p in three[gone]._peers.values()])
    wait_until(lambda: left[THIRD].has_failed, "the error")
    late.start()
    with pytest.raises(ExecutorDied, match=rf"rank {gone} \(of the test\) is gone"):
        left[THIRD].check()
    for one in left.values():
        with pytest.raises(ExecutorDied, match=rf"rank {gone} \(of the test\) is gone"):
            one.values_of(1)


def test_an_error_of_torch_is_told_where_no_rank_is_gone(three: dict[int, Siblings]) -> None:
    three[OTHER].fail(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match=f"rank {OTHER}: shapes differ"):
        three[DRIVER].values_of(1)


def test_an_error_of_a_type_that_is_not_known_is_told(three: dict[int, Siblings]) -> None:
    three[OTHER].fail(msgspec.ValidationError("strange"))
    with pytest.raises(RankError, match=r"rank 0: msgspec\.ValidationError: strange"):
        three[THIRD].values_of(1)


def test_schedulers_that_differ_are_named_with_their_step(three: dict[int, Siblings]) -> None:
    plan = fake_plan(1)
    three[OTHER].plan(planned(plan))
    three[DRIVER].plan(planned(plan))
    three[THIRD].plan(planned(fake_plan(1, num_rows=3)))
    for one in three.values():
        with pytest.raises(ExecutorDied, match=r"step 1 of rank 2 has 3 rows .* of rank 1 2 rows"):
            one.values_of(1)


def test_a_rank_that_left_is_not_waited_for(three: dict[int, Siblings]) -> None:
    for one in three.values():
        one.plan(planned(fake_plan(1)))
    three[DRIVER].publish(result_of(1))
    three[OTHER].leave()
    assert three[DRIVER].values_of(1).step == three[THIRD].values_of(1).step == 1, (
        "it had a part in it"
    )
    three[DRIVER].check()
    with pytest.raises(ExecutorDied, match=r"rank 0 .*has stopped its engine.* at step 2"):
        three[DRIVER].values_of(2)
    with pytest.raises(ExecutorDied, match=r"rank 0 .*has stopped its engine.* at step 2"):
        three[THIRD].values_of(2)


def test_a_rank_that_does_not_come_to_a_step_is_not_waited_for_without_end(
    three: dict[int, Siblings],
) -> None:
    three[THIRD]._limit_s = 0.01
    three[THIRD].plan(planned(fake_plan(1)))
    with pytest.raises(ExecutorDied, match=r"rank 1 .* has not come to step 1 for 0\.01 s"):
        three[THIRD].values_of(1)


def admission(**changes: Any) -> Admission:
    given = {"slot": 1, "request_id": "a", "token_ids": np.arange(3, dtype=np.int32)}
    params = SamplingParams(seed=1, logits_processors=[lambda _, logits: logits])
    return Admission(**{**given, "num_prompt_tokens": 3, "params": params, **changes})


def digest_of(**changes: Any) -> bytes:
    return planned(msgspec.structs.replace(fake_plan(1), **changes)).digest


def test_digests_tell_what_ranks_would_do_and_not_who_asked() -> None:
    def same() -> StepPlan:
        return msgspec.structs.replace(fake_plan(1), admissions=(admission(),))

    assert planned(same()) == planned(same())
    assert digest_of(admissions=(admission(request_id="b"),)) == planned(same()).digest
    masks = np.asarray([[-1, 5], [3, 0]], np.int32)
    different = [
        digest_of(),
        digest_of(admissions=(admission(),)),
        digest_of(admissions=(admission(params=SamplingParams(seed=2)),)),
        digest_of(admissions=(admission(token_ids=np.asarray([0, 1, 3], np.int32)),)),
        digest_of(starts=np.asarray([0, 2], np.int32)),
        digest_of(masks=masks),
        digest_of(masks=masks + 1),
        digest_of(given=np.asarray([[1, 2, 3]], np.int32)),
    ]
    assert len(set(different)) == len(different)


def test_a_thread_that_hangs_keeps_nothing_waiting() -> None:
    thread, goes_on = DaemonThread("hangs"), threading.Event()
    assert thread.submit(lambda: 1).result(HANG_S) == 1
    with pytest.raises(KeyError):
        thread.submit({}.__getitem__, "x").result(HANG_S)
    thread.submit(goes_on.wait)
    assert not thread.stop(0.01)
    goes_on.set()
    assert thread.stop(HANG_S)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """Of processes that are threads of this one."""
    shared = HashStore()
    monkeypatch.setattr(meeting, "_store", lambda launched, limit_s: shared)
    return shared


def process(rank: int) -> Launched:
    return Launched(rank, 2, rank, 2, "127.0.0.1", 1)


def test_processes_meet_and_strangers_are_sent_away(store: HashStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        driver = pool.submit(meet, process(1), 1, HANG_S)
        wait_until(lambda: store.num_keys() > 0, "the driver's address")
        host, port, word, pid = store.get("driver").decode().split()
        strangers = [socket.create_connection((host, int(port))) for _ in range(2)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        hello = msgspec.msgpack.encode(Hello(0, "a guess", 1, 0))
        Link(strangers[1]).put(Kind.HELLO, hello)
        met = [driver.result, pool.submit(meet, process(0), 1, HANG_S).result]
        peers = [one(HANG_S).peers for one in met]
    assert [list(some) for some in peers] == [[0], [1]]
    assert peers[1][1].name == f"rank 1 (process {pid})" and len(word) == 32
    for stranger in strangers:
        stranger.setblocking(True)
        assert stranger.recv(1) == b""
        stranger.close()
    peers[0][0].link.put(Kind.WORD, b"values")
    assert peers[1][1].link.wait(HANG_S)
    assert [frame.payload for frame in peers[1][1].link.frames()] == [b"values"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_come_is_named(store: HashStore, rank: int) -> None:
    with pytest.raises(ExecutorDied, match=rf"rank {1 - rank} has not made its engine within 0\.1"):
        meet(process(rank), 1, 0.1)


def test_a_rank_leaves_when_others_have_been_sent_why(
    three: dict[int, Siblings], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = three[OTHER]
    send, leaves = one._send, threading.Event()

    def late(word: Any, but: int = -1) -> None:
        if isinstance(word, Fault):
            assert leaves.wait(HANG_S)
            time.sleep(0.2)  # in which the other thread goes on, unless it waits
        send(word, but)

    monkeypatch.setattr(one, "_send", late)
    failing = threading.Thread(target=one.fail, args=(ValueError("planted"),))
    failing.start()
    wait_until(lambda: one.has_failed, "the fault")
    leaves.set()
    one.leave()
    failing.join()
    for rank in (DRIVER, THIRD):
        with pytest.raises(ValueError, match=f"rank {OTHER}: planted"):
            three[rank].values_of(1)
