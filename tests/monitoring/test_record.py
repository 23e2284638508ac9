"""The record of a run: means, what a kill or a full disk leaves, what a resumed run keeps."""

import errno
import json
import logging
import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from esrl_fairseq.monitoring import record as module
from esrl_fairseq.monitoring.logs import BRANCHES, HISTOGRAM_BINS
from esrl_fairseq.monitoring.reading import since_begin
from esrl_fairseq.monitoring.record import FILE, Record, kept_records, plain, read_record

LOGGED = """
batches nsentences rows draws loss budget optional temperature known capability entropy baseline
sampled_tokens scored_tokens empty truncated words reference_words peak_gb all_tokens chosen_rows
chosen_tokens kept_squares batches_with_gradient nll_references
seconds_stage_one seconds_reward seconds_stage_two
""".split()
LOGGED += [f"{name}_{branch}" for name in ("loss", "inputs") for branch in BRANCHES]
LOGGED += [f"quarter_{i}" for i in range(HISTOGRAM_BINS + 1)]


class Trainer:
    """What a record asks of fairseq's."""

    def __init__(self, updates=0):
        self.updates = updates
        self.cfg = OmegaConf.create({"dataset": {"valid_subset": "valid,test"}})
        self.task = SimpleNamespace(
            outcome=SimpleNamespace(run=""), rl=SimpleNamespace(resumed_from="", epoch=1)
        )

    def get_num_updates(self):
        return self.updates

    def cumulative_training_time(self):
        return 2.0 * self.updates

    def get_lr(self):
        return 1e-4


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a run's record in a folder, as after ``updates`` updates, and its first epoch."""
    monkeypatch.setattr(module, "description", lambda trainer, start: {"command": "train"})
    monkeypatch.setattr(module, "histograms", lambda rl, options: {})
    records = []

    def call(updates=0, run="", first_epoch=True, folder=tmp_path, resumed_from=""):
        record = Record(Trainer(updates), str(folder))
        records.append(record)
        record.trainer.task.outcome.run = run
        record.trainer.task.rl.resumed_from = str(resumed_from)
        record.begin(None)
        if first_epoch:
            record.add_epoch(record.trainer.task.rl, None)
        return record

    yield call
    for record in records:
        logging.getLogger().removeHandler(record.watch)


def update(record, reward=0.5, draws=4):
    """An update with some samples, of this mean reward."""
    record.trainer.updates += 1
    record.begin_update()
    sums = {"draws": draws, "reward": reward * draws, "reward_squared": reward**2 * draws}
    sums = {**dict.fromkeys(LOGGED, 1), **sums}
    record.updated([sums, {**sums, "reward": 0.0, "reward_squared": 0.0, "draws": 0}])


def read(folder):
    return list(read_record(os.path.join(folder, FILE)))


def test_means_are_of_so_many_updates_that_the_file_stays_small(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPACING", ((3, 1), (10, 2), (float("inf"), 5)))
    record = begin()
    for number in range(1, 18):
        update(record, reward=number / 100, draws=number)
    record.end("the outcome")
    updates = [r for r in read(tmp_path) if r["kind"] == "update"]
    assert [r["at"] for r in updates] == [1, 2, 3, 4, 6, 8, 10, 15, 17]
    assert [r["updates"] for r in updates] == [1, 1, 1, 1, 2, 2, 2, 5, 2]
    # Means over samples: update 6 has more of them than update 5.
    assert updates[4]["reward"] == pytest.approx((0.05 * 5 + 0.06 * 6) / 11, abs=1e-4)
    assert updates[4]["samples"] == pytest.approx(11 / 4) and updates[4]["lr"] == 1e-4
    assert updates[4]["wall"] == 12
    assert [r["kind"] for r in read(tmp_path)][-1] == "end"


def test_a_cut_line_is_ignored(begin, tmp_path):
    record = begin()
    update(record), update(record)
    whole = read(tmp_path)
    path = tmp_path / FILE
    lines = path.read_bytes()
    for cut in (1, 30, len(lines.splitlines()[-1])):
        path.write_bytes(lines[:-cut])
        # Of a line that lacks its end alone nothing is lost.
        assert read(tmp_path) == (whole if cut == 1 else whole[:-1])
    path.write_bytes(lines + "ä".encode()[:1])
    assert read(tmp_path) == whole


def test_a_resumed_run_goes_on_behind_its_checkpoint(begin, tmp_path):
    first = begin()
    for _ in range(5):
        update(first)
    run = first.trainer.task.outcome.run
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"kind": "upd')  # the kill
    second = begin(updates=3, run=run)
    assert second.trainer.task.outcome.run == run
    update(second, reward=0.25)
    found = read(tmp_path)
    assert [r["at"] for r in found if r["kind"] == "update"] == [1, 2, 3, 4]
    assert [r["resumed"] for r in found if r["kind"] == "begin"] == [False, True]
    assert [r["epoch"] for r in found if r["kind"] == "epoch"] == [1]  # it is still the same
    assert found[-1]["reward"] == 0.25
    # In another folder it takes its own history along.
    begin(updates=2, run=run, folder=tmp_path / "other", resumed_from=tmp_path)
    assert [r["at"] for r in read(tmp_path / "other") if r["kind"] == "update"] == [1, 2]
    assert read(tmp_path) == found


@pytest.mark.parametrize("updates, run", [(0, "own"), (3, ""), (3, "another")])
def test_another_run_begins_anew(updates, run, begin, tmp_path):
    """Not before its first epoch: until then its start may be refused."""
    first = begin()
    update(first)
    before = read(tmp_path)
    own = first.trainer.task.outcome.run
    second = begin(updates, own if run == "own" else run, first_epoch=False)
    assert read(tmp_path) == before
    second.add_epoch(second.trainer.task.rl, None)
    assert [r["kind"] for r in read(tmp_path)] == ["begin", "epoch"]
    assert second.trainer.task.outcome.run not in ("", own, run)


def test_a_full_disk_is_one_warning_and_no_end(begin, tmp_path, monkeypatch, caplog):
    record = begin()
    update(record)
    write = os.write

    def half(file, line):
        write(file, line[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    for _ in range(3):
        update(record)
    monkeypatch.setattr(os, "write", write)
    update(record)
    told = [r.getMessage() for r in caplog.records if "record cannot be written" in r.getMessage()]
    assert len(told) == 1 and "No space left on device" in told[0]
    found = read(tmp_path)
    assert [r["at"] for r in found if r["kind"] == "update"] == [1, 5]


def test_a_folder_that_cannot_be_written(begin, tmp_path, caplog):
    """Once it can, all that was to be told is."""
    (tmp_path / "run").write_text("")
    record = begin(folder=tmp_path / "run")
    update(record)
    record.trainer.task.rl.epoch = 2
    record.add_epoch(record.trainer.task.rl, None)
    assert sum("record cannot be written" in r.getMessage() for r in caplog.records) == 1
    (tmp_path / "run").unlink()
    record.trainer.task.rl.epoch = 3
    record.add_epoch(record.trainer.task.rl, None)
    kinds = [r["kind"] for r in read(tmp_path / "run")]
    assert kinds == ["begin", "warning", "epoch", "update", "epoch", "epoch"]


def test_warnings_are_recorded_once(begin, tmp_path):
    record = begin(first_epoch=False)
    logging.getLogger("esrl_fairseq.x").warning("odd: %d", 7)
    record.add_epoch(record.trainer.task.rl, None)
    record.trainer.updates = 4
    logging.getLogger("another").error("worse")
    logging.getLogger("esrl_fairseq.x").warning("odd: %d", 7)
    logging.getLogger("esrl_fairseq.x").info("fine")
    found = [(r["message"], r["at"]) for r in read(tmp_path) if r["kind"] == "warning"]
    assert found == [("odd: 7", 0), ("worse", 4)]
    again = begin(updates=4, run=record.trainer.task.outcome.run, first_epoch=False)
    logging.getLogger("esrl_fairseq.x").warning("odd: %d", 7)
    again.add_epoch(again.trainer.task.rl, None)
    assert found == [(r["message"], r["at"]) for r in read(tmp_path) if r["kind"] == "warning"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record(Trainer(), None)
    record.begin(None)
    update(record)
    record.end("")
    assert not list(tmp_path.iterdir())


def test_values_become_json():
    found = plain({"a": float("nan"), "b": (1, True, None, 1 / 3), 3: [float("inf"), "ä"]})
    assert found == {"a": None, "b": [1, True, None, 0.333333], "3": [None, "ä"]}
    json.dumps(found, allow_nan=False)


def test_nothing_is_kept_of_what_is_no_record(tmp_path):
    (tmp_path / FILE).write_text('[]\n{"kind": 1}\n"x"\n\n{"kind": "begin", "at": 0, "run": "a"}\n')
    assert len(read(tmp_path)) == 1
    assert kept_records([str(tmp_path / "none"), str(tmp_path)], "a", 5) == read(tmp_path)
    assert kept_records([str(tmp_path)], "", 5) == []


def test_time_is_the_runs_own():
    """fairseq goes on with the clock of the start model's checkpoint."""
    walls = [260.0, 290.0, None, 350.0]
    records = [{"kind": "update", "at": at, "wall": wall} for at, wall in enumerate(walls)]
    assert [record["wall"] for record in since_begin(records)] == [0, 30, None, 90]
    assert since_begin([]) == [] and records[1]["wall"] == 290
