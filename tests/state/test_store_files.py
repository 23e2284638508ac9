"""Files of large stores: shared by checkpoints, kept as long as one needs them; disks that fail."""

import errno
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state import capability, store_files
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.rl_state import RLState, Visit
from esrl_fairseq.state.store_files import FOLDER, LOCK, StoreFiles

OWNER, SIZE = "ab" * 64, 1000


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Stores of a thousand samples are large ones."""
    monkeypatch.setattr(capability, "WHOLE", SIZE - 1)


def make_state(folder, saved=None, origin="", store=None):
    state = RLState(str(folder), store and str(store))
    state.resumed_from = str(origin)
    if saved is not None:
        state.load_state_dict(saved)
    state.open_store(0, SIZE, OWNER)
    return state


def visit(state, seed, inputs=300):
    draw = np.random.default_rng(seed)
    ids = draw.permutation(SIZE)[:inputs]
    seen = np.zeros(inputs, RECORD)
    seen["capability"], seen["samples"] = draw.random(inputs), 4
    state.add(Visit(ids, seen, np.zeros(0, np.float32)))
    state.commit()


def save(state, path):
    torch.save({"rl": state.state_dict()}, path)
    return state.store.records.tobytes()


def load(path):
    return torch.load(path, weights_only=True)["rl"]


def files(folder):
    return {path.name: path.stat().st_size for path in (folder / FOLDER).glob("*")}


def trained(folder, checkpoints):
    """A run with a checkpoint after each 300 visits; the store's bytes at each."""
    folder.mkdir(exist_ok=True)
    state = make_state(folder)
    found = []
    for number in range(checkpoints):
        visit(state, number)
        found.append(save(state, folder / f"checkpoint{number}.pt"))
    return state, found


def test_checkpoints_share_files(tmp_path):
    """A checkpoint adds what changed, and is small; each gives its own store, bit for bit."""
    state, found = trained(tmp_path / "run", 4)
    assert max(len(load(p)["stores"][0]["packed"]) for p in (tmp_path / "run").glob("*.pt")) == 0
    sizes = files(tmp_path / "run").values()
    assert len(sizes) == 4 and max(sizes) < 300 * 17 and sum(sizes) < 20 * 300 * 4
    for number, content in enumerate(found):
        resumed = make_state(tmp_path / "run", load(tmp_path / "run" / f"checkpoint{number}.pt"))
        assert resumed.store.records.tobytes() == content
        assert not resumed.store.changed.any()
    before = files(tmp_path / "run")
    save(state, tmp_path / "run" / "again.pt")  # nothing changed since
    assert files(tmp_path / "run") == before


def test_files_are_removed_with_the_last_checkpoint_that_needs_them(tmp_path):
    """Best is older than last; both, and whatever lies between, can be resumed from."""
    folder = tmp_path / "run"
    state, found = trained(folder, 3)
    for number in range(3, 40):
        visit(state, number)
        found.append(save(state, folder / f"checkpoint{number}.pt"))
        for old in (3, number - 3):  # two epochs and the best one, 2, are kept
            if old != 2:
                (folder / f"checkpoint{old}.pt").unlink(missing_ok=True)
    kept = sorted(folder.glob("*.pt"))
    assert len(kept) == 4
    for path in kept:
        number = int(path.stem.removeprefix("checkpoint"))
        assert make_state(folder, load(path)).store.records.tobytes() == found[number]
    named = set().union(*(store_files.names_in(path) for path in kept))
    assert {name.encode() for name in files(folder)} >= named
    visit(state, 99)
    save(state, folder / "checkpoint99.pt")  # removes what the one before left over
    unneeded = {name.encode() for name in files(folder)} - named
    assert len(unneeded) <= 1
    whole = SIZE * 16
    assert sum(files(folder).values()) < 2 * (capability.LONGEST + 1) * whole


def test_a_resume_from_an_older_checkpoint_takes_nothing_from_newer_ones(tmp_path):
    folder = tmp_path / "run"
    _, found = trained(folder, 3)
    resumed = make_state(folder, load(folder / "checkpoint0.pt"))
    for number in range(10, 14):
        visit(resumed, number)
        save(resumed, folder / f"other{number}.pt")
    for number in range(3):
        again = make_state(folder, load(folder / f"checkpoint{number}.pt"))
        assert again.store.records.tobytes() == found[number]


def test_what_a_killed_run_left_is_removed(tmp_path):
    """A file that was written for a checkpoint which never came to be, or in part."""
    folder = tmp_path / "run"
    state, _ = trained(folder, 1)
    visit(state, 7)
    state.state_dict()  # and no checkpoint
    run = next(iter(files(folder))).partition(".")[0]
    (folder / FOLDER / f"{run}.0.{'0' * 32}.records").write_bytes(b"half")
    (folder / FOLDER / "notes.txt").write_text("mine")
    assert len(files(folder)) == 4
    resumed = make_state(folder, load(folder / "checkpoint0.pt"))
    save(resumed, folder / "checkpoint1.pt")
    assert len(files(folder)) == 2 and "notes.txt" in files(folder)


def test_a_checkpoint_that_cannot_be_read_keeps_all_files(tmp_path, caplog):
    folder = tmp_path / "run"
    state, _ = trained(folder, 12)
    (folder / "checkpoint_best.pt").write_bytes(b"PK\3\4 cut off")
    for number in range(11):
        (folder / f"checkpoint{number}.pt").unlink()
    before = set(files(folder))
    save(state, folder / "checkpoint12.pt")
    assert before <= set(files(folder))
    assert "checkpoint_best.pt cannot be read" in caplog.text
    (folder / "checkpoint_best.pt").unlink()
    save(state, folder / "checkpoint13.pt")
    assert not before <= set(files(folder))


def test_two_runs_in_one_folder_leave_each_other_alone(tmp_path):
    """One after the other, with the same --capability-store."""
    found = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        state = make_state(tmp_path / name, store=tmp_path / "store")
        for number in range(12):
            visit(state, number, 500)
            found[name] = save(state, tmp_path / name / "checkpoint_last.pt")
    for name in ("a", "b"):
        saved = load(tmp_path / name / "checkpoint_last.pt")
        again = make_state(tmp_path / name, saved, store=tmp_path / "store")
        assert again.store.records.tobytes() == found[name]


def test_a_checkpoint_copied_alone(tmp_path, caplog):
    """It says what is missing, and goes on without; beside its files it is whole, elsewhere too."""
    folder, other = tmp_path / "run", tmp_path / "other"
    _, found = trained(folder, 3)
    other.mkdir()
    shutil.copy(folder / "checkpoint2.pt", other)
    alone = make_state(other, load(other / "checkpoint2.pt"))
    assert np.isnan(alone.store.capability(range(SIZE))).all()
    (message,) = [r.getMessage() for r in caplog.records]
    assert f"there is no {other / FOLDER}" in message and "copy this folder" in message
    visit(alone, 5)
    save(alone, other / "checkpoint3.pt")

    named = make_state(tmp_path / "third", load(folder / "checkpoint2.pt"), origin=folder)
    assert named.store.records.tobytes() == found[2]
    shutil.rmtree(tmp_path / "third")
    (tmp_path / "third").mkdir()
    content = save(named, tmp_path / "third" / "checkpoint.pt")  # in files of its own
    shutil.move(folder, tmp_path / "gone")
    again = make_state(tmp_path / "third", load(tmp_path / "third" / "checkpoint.pt"))
    assert again.store.records.tobytes() == content == found[2]
    moved = make_state(tmp_path / "gone", load(tmp_path / "gone" / "checkpoint1.pt"))
    assert moved.store.records.tobytes() == found[1]


def resume_on_rank(rank, folder, answers):
    """The first rank of two has the files; the other one's folder is empty."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    state = make_state(
        folder / ("run" if rank == 0 else "none"), load(folder / "run/checkpoint1.pt")
    )
    answers.put((rank, state.store.records.tobytes(), state.files is None))
    dist.destroy_process_group()


def test_the_first_rank_reads_for_all(tmp_path):
    (tmp_path / "run").mkdir()
    found = trained(tmp_path / "run", 2)[1]  # its lock ends with its state
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    started = [
        context.Process(target=resume_on_rank, args=(rank, tmp_path, answers)) for rank in range(2)
    ]
    for process in started:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in started) == [
        (0, found[1], False),
        (1, found[1], True),
    ]
    for process in started:
        process.join()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "there is no"),
        (lambda path: path.write_bytes(b""), "has not the"),
        (lambda path: os.truncate(path, 100), "has not the"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has not the"),
        (flip, "is not what was written"),
        (lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "is not what was written"),
        (lambda path: (path.unlink(), path.mkdir()), ""),
    ],
)
def test_damaged_files(damage, words, tmp_path, caplog):
    """While the run goes on nothing happens: the next checkpoint has all of it, in a new file.

    A run resumed from a checkpoint that needs a damaged file says which and begins anew.
    """
    folder = tmp_path / "run"
    state, _ = trained(folder, 3)
    (broken, *_), *_ = load(folder / "checkpoint1.pt")["stores"][0]["files"]
    damage(folder / FOLDER / broken)
    resumed = make_state(folder, load(folder / "checkpoint1.pt"))
    assert not resumed.store.records["samples"].any()
    message = caplog.records[-1].getMessage()
    assert words in message and broken in message and "are forgotten" in message
    if words == "is not what was written":
        return  # its length tells nothing
    visit(state, 8)
    content = save(state, folder / "checkpoint3.pt")
    assert "written anew" in caplog.records[-1].getMessage()
    again = make_state(folder, load(folder / "checkpoint3.pt"))
    assert again.store.records.tobytes() == content


def test_a_full_disk(tmp_path, monkeypatch, caplog):
    """The checkpoint gets what no file could take; nothing half is left; later ones share again."""
    folder = tmp_path / "run"
    state, _ = trained(folder, 2)
    before, sync, full = files(folder), os.fsync, True

    def fsync(number):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    found = {}
    for number in (2, 3):
        visit(state, number)
        found[number] = save(state, folder / f"checkpoint{number}.pt")
        assert files(folder) == before
        assert "No space left on device" in caplog.records[-1].getMessage()
    assert 300 * 16 < len(load(folder / "checkpoint3.pt")["stores"][0]["packed"]) < 600 * 17
    full = False
    visit(state, 4)
    found[4] = save(state, folder / "checkpoint4.pt")
    assert not len(load(folder / "checkpoint4.pt")["stores"][0]["packed"])
    for number, content in found.items():
        again = make_state(folder, load(folder / f"checkpoint{number}.pt"))
        assert again.store.records.tobytes() == content
        visit(again, 5)
        content = save(again, folder / "next.pt")  # of what was in the checkpoint, too
        assert make_state(folder, load(folder / "next.pt")).store.records.tobytes() == content


@pytest.mark.parametrize(
    "place", ["/proc/nowhere", "a file", "/dev/full", pytest.param("read-only", id="read-only")]
)
def test_wrong_places(place, tmp_path, monkeypatch):
    """In one sentence, with what the system says, before anything is trained."""
    if place == "a file":
        place = tmp_path / "file"
        place.write_text("mine")
    if place == "read-only":
        place = tmp_path

        def refuse(*_):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(store_files, "lock", refuse)
    with pytest.raises(EsrlError) as error:
        make_state(tmp_path, store=place)
    assert f"the capability store cannot be kept in {place} (" in str(error.value)
    assert "--save-dir or --capability-store" in str(error.value)


def test_a_link_instead_of_the_lock_is_not_followed_into_nothing(tmp_path):
    """A name that the program never chose cannot be read."""
    folder = tmp_path / "run"
    trained(folder, 1)
    saved = load(folder / "checkpoint0.pt")
    saved["stores"][0]["files"][0][0] = "../../../etc/passwd"
    assert not make_state(folder, saved).store.records["samples"].any()


def open_at_once(folder, barrier, answers, leave):
    barrier.wait()
    try:
        files = StoreFiles(str(folder), str(folder))
    except EsrlError as error:
        answers.put(str(error))
    else:
        answers.put(files.run)
    leave.wait()


def in_processes(folder, processes):
    """What each of them gets that opens the folder at the same time: the files, or a refusal."""
    context = multiprocessing.get_context("fork")
    barrier, answers, leave = context.Barrier(processes), context.Queue(), context.Event()
    arguments = (folder, barrier, answers, leave)
    started = [context.Process(target=open_at_once, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    found = [answers.get(timeout=60) for _ in started]
    leave.set()
    for process in started:
        process.join()
    return sorted(found, key=len)


@pytest.mark.parametrize("rounds", [4, pytest.param(300, marks=pytest.mark.long)])
def test_one_process_of_many_gets_a_new_folder(tmp_path, rounds):
    """And the others the sentence, every time."""
    for number in range(rounds):
        first, *others = in_processes(tmp_path / str(number), 8)
        assert len(first) == 8 and all(other.startswith("another run is") for other in others)


def test_the_lock_ends_with_its_process(tmp_path):
    """And the file stays, so that all lock the same one."""
    held = StoreFiles(str(tmp_path), str(tmp_path))
    (refused,) = in_processes(tmp_path, 1)
    assert refused.startswith(f"another run is using {tmp_path}") and LOCK in refused
    run = held.run
    del held
    assert in_processes(tmp_path, 1) == [run] and (tmp_path / LOCK).exists()
