"""Who is missing, with ranks that are threads and a store in memory."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from esrl_fairseq.processes import running
from esrl_fairseq.processes import watch as watch_module
from esrl_fairseq.processes.connections import Connections, open_sockets
from esrl_fairseq.processes.watch import FAILED, LIMIT, NO_ANSWER, Watch, limit_of

ALIVE = SimpleNamespace(close=lambda: None)


@pytest.fixture
def ranks():
    """Three that tell each other where they are, but do not look."""
    store = dist.HashStore()
    made = [Watch(store, rank, 3, 600, ALIVE) for rank in range(3)]
    for watch in made:
        watch.interval = 0.05
        threading.Thread(target=watch.tell, daemon=True).start()
    yield made
    for watch in made:
        watch.over.set()


def test_those_behind_are_missing(ranks):
    for watch in ranks[:2]:
        watch.step("busy with its batches of update 7")
    assert ranks[0].find_missing().endswith(": rank 2 of 3 is still starting")
    ranks[2].step("busy with its batches of update 7")
    assert "all 3 ranks are busy with its batches of update 7" in ranks[0].find_missing()
    ranks[1].part(False)  # through with a batch
    found = ranks[1].find_missing()
    assert found.endswith(": ranks 0, 2 of 3 are still busy with its batches of update 7")
    for watch in ranks:
        watch.part(True)
    ranks[0].saving()
    for watch in ranks[1:]:
        watch.step("busy with its batches of update 8")
    assert ranks[1].find_missing().endswith("rank 0 of 3 is still saving a checkpoint")


def test_those_that_tell_nothing_are_silent(ranks):
    ranks[2].over.set()
    time.sleep(0.2)
    assert ranks[0].find_missing().endswith(": rank 2 of 3 is silent")
    assert ranks[0].find_gone() == "rank 2 of 3 is gone: killed, or its machine is"


def test_the_first_verdict_counts_and_reaches_all(ranks):
    ranks[2].publish("rank 2 of 3 failed: oops")
    ranks[1].publish("rank 1 of 3 failed: the connection was lost")
    assert ranks[0].find_gone() == "rank 2 of 3 failed: oops"
    assert ranks[0].store.get(FAILED) == b"rank 2 of 3 failed: oops"


def test_a_store_that_does_not_answer(ranks, monkeypatch):
    monkeypatch.setattr(watch_module, "ANSWER", 0.5)
    ranks[0].interval = 0.01
    ranks[0].places = lambda: threading.Event().wait()
    began = time.monotonic()
    assert ranks[0].find_missing().endswith(NO_ANSWER) and time.monotonic() - began < 5


def test_look_ends_a_rank_that_does_not_notice(ranks, monkeypatch):
    """Not one that goes on in time, and not one that knows already."""
    ended = []
    monkeypatch.setattr(Watch, "end_now", lambda self: ended.append(self.rank))
    for watch in ranks:
        watch.limit = 0.3
    ranks[0].ending = True
    looking = [threading.Thread(target=watch.look, daemon=True) for watch in ranks]
    for thread in looking:
        thread.start()
    time.sleep(0.2)
    ranks[2].over.set()
    for thread in looking:
        thread.join(20)
        assert not thread.is_alive()
    assert ended == [1] and ranks[0].verdict


def test_limits():
    assert limit_of(SimpleNamespace(heartbeat_timeout=-1)) == LIMIT == 600
    assert limit_of(SimpleNamespace(heartbeat_timeout=20)) == 20


def test_what_waits_is_woken():
    """By its own thread; connections that were there before, and the store's, stay."""
    old = socket.socketpair()
    with (
        socket.create_server(("127.0.0.1", 0)) as store,
        socket.create_server(("127.0.0.1", 0)) as s,
    ):
        before = open_sockets()
        port = store.getsockname()[1]
        client, other = (socket.create_connection(x.getsockname()) for x in (store, s))
        connections = Connections(before, port)
        connections.shut(10**6)  # closed by another thread
        connections.close()
        assert other.recv(1) == b""  # its end
        client.sendall(b"x"), old[0].sendall(b"x")
        accepted, _ = store.accept()
        assert accepted.recv(1) == old[1].recv(1) == b"x"
        for each in (client, other, accepted, *old):
            each.close()


def test_errors_of_lost_connections(monkeypatch):
    gloo = RuntimeError("[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    assert not running.lost(gloo)  # there is one rank
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert running.lost(gloo) and running.lost(dist.DistNetworkError("reset"))
    assert running.lost(dist.DistBackendError("NCCL error"))
    assert not running.lost(RuntimeError("out of memory")) and not running.lost(KeyError("gloo"))


@pytest.mark.parametrize("how", ["works", "fails"])
def test_what_the_first_rank_saved_is_told(how, ranks, monkeypatch):
    def save():
        if how == "fails":
            raise OSError("disk full")
        return "the state after update 3 is in x"

    ranks[0].rescue = save
    ranks[2].publish("rank 2 of 3 failed: oops")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(SystemExit) as ended:
        running.fail(ranks[0], RuntimeError("gloo: closed"))
    saved = {
        "works": save,
        "fails": lambda: "the last state could not be saved (OSError: disk full)",
    }
    assert ended.value.code == f"rank 2 of 3 failed: oops; {saved[how]()}"
