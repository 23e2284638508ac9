"""A damaged checkpoint is refused, or replaced by the newest whole one."""

import errno
import os
import pickle
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from saving import save, state_after, updates

from esrl_fairseq.checkpoints.reading import check_file, own_last, problem_of
from esrl_fairseq.errors import EsrlError


def flip(path, place=0.5, bit=2):
    """One bit of a file, at this part of its length."""
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 1 << bit
    path.write_bytes(raw)


def cut(path, part=0.7):
    os.truncate(path, int(path.stat().st_size * part))


def empty(path):
    os.truncate(path, 0)


DAMAGES = [(flip, "is damaged"), (cut, "is cut off"), (empty, "is empty")]


@pytest.fixture
def folder(tmp_path):
    """Of a run that saved after updates 1 to 3."""
    for update in (1, 2, 3):
        save(tmp_path, update)
    return tmp_path


@pytest.mark.parametrize("damage, words", DAMAGES)
def test_the_newest_whole_one_is_taken(damage, words, folder, caplog):
    last = folder / "checkpoint_last.pt"
    damage(last)
    newest_first = ("checkpoint_best.pt", "checkpoint_1_3.pt", "checkpoint_1_2.pt")
    for time, newest in enumerate(newest_first):
        caplog.clear()
        found = own_last(str(folder))
        assert found == str(folder / newest)
        (record,) = caplog.records
        text = record.getMessage()
        assert str(last) in text and str(folder / newest) in text and words in text
        assert f"after update {updates(found)}" in text
        assert own_last(str(folder)) == found and len(caplog.records) == 1  # said once
        damage(folder / newest)
        os.utime(last, (time, time))  # another version of it
    with pytest.raises(EsrlError, match=f"{last} {words}.* no other one in .* is whole"):
        own_last(str(folder))


def test_names_and_ages_do_not_tell_which_is_the_newest(folder, caplog):
    """What a checkpoint holds does; other files and other ranks' are none of the run's."""
    flip(folder / "checkpoint_last.pt")
    os.remove(folder / "checkpoint_best.pt")
    os.rename(folder / "checkpoint_1_3.pt", folder / "checkpoint1.pt")
    os.utime(folder / "checkpoint1.pt", (1, 1))
    torch.save(state_after(9), folder / "crash.pt")
    torch.save(state_after(9), folder / "checkpoint_last-shard1.pt")
    torch.save({"updates": 9}, folder / "checkpoint9.pt")
    assert own_last(str(folder)) == str(folder / "checkpoint1.pt")


def test_no_last_checkpoint_is_a_new_run(folder):
    os.remove(folder / "checkpoint_last.pt")
    assert own_last(str(folder)) == "" == own_last(str(folder / "not there"))


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_last_checkpoint_out_of_reach_is_no_new_run(error, folder, monkeypatch):
    """A link to a disk that is not there, or a disk that does not answer."""
    last = folder / "checkpoint_last.pt"
    os.remove(last)
    last.symlink_to(folder / "of a disk" / "that is away.pt")
    with pytest.raises(EsrlError, match=f"{last}, is there but cannot be read .*No such file"):
        own_last(str(folder))
    stock = os.stat

    def stat(path, *arguments, **keywords):
        if str(path) == str(last):
            raise OSError(error, os.strerror(error))
        return stock(path, *arguments, **keywords)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(EsrlError, match=f"cannot be read .{os.strerror(error)}.: mount its disk"):
        own_last(str(folder))


@pytest.mark.parametrize("variable", ["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_nothing_in_a_file_is_run_whatever_torch_is_told(variable, tmp_path, monkeypatch):
    """The variable is a common way to load fairseq's checkpoints with torch 2.6 and later."""

    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    if variable:
        monkeypatch.setenv(variable, "1")
    torch.save({"cfg": None, "x": Malice()}, tmp_path / "evil.pt")
    with pytest.raises(EsrlError, match="evil.pt wants to run .*mkdir"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


def test_flipped_bits_of_a_checkpoint(folder):
    """Of 200, none is read by fairseq, and none makes the run begin anew."""
    last = folder / "checkpoint_last.pt"
    raw, rng = last.read_bytes(), random.Random(5)
    for _ in range(200):
        last.write_bytes(raw)
        flip(last, rng.random(), rng.randrange(8))
        with pytest.raises(EsrlError, match=f"checkpoint {last} is "):
            checkpoint_utils.load_checkpoint_to_cpu(str(last))
        assert updates(own_last(str(folder))) == 3
    last.write_bytes(raw)
    assert checkpoint_utils.load_checkpoint_to_cpu(str(last))["model"]


def test_old_pickles_are_read(tmp_path):
    """torch before 1.6 wrote no archives, and no checksums: only a cut shows."""
    path = tmp_path / "old.pt"
    torch.save(state_after(3), path, _use_new_zipfile_serialization=False)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert torch.equal(state["model"]["weight"], state_after(3)["model"]["weight"])
    for part in (0.9, 0.5, 0.01):
        cut(path, part)
        with pytest.raises(EsrlError, match=f"{path} is cut off, damaged or no checkpoint"):
            checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_other_files_are_none(tmp_path):
    for name, content, words in (
        ("text.pt", b"some text\n", "is a text file"),
        ("pickle.pt", pickle.dumps({"a": 1}), "is cut off, damaged or no checkpoint"),
        ("other.pt", b"\0\1\2", "is no checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EsrlError, match=words):
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name))
    with pytest.raises(EsrlError, match="--kl-reference .*not there does not exist: mend it"):
        check_file(str(tmp_path / "not there"), "--kl-reference", "mend it")


def test_a_file_is_read_once_for_each_version_of_it(folder, monkeypatch):
    path = folder / "checkpoint_1_2.pt"
    read = []
    monkeypatch.setattr("esrl_fairseq.checkpoints.reading.check_archive", read.append)
    for _ in range(3):
        assert not problem_of(str(path))
    assert len(read) == 1
    shutil.copyfile(folder / "checkpoint_1_3.pt", path)
    assert not problem_of(str(path)) and len(read) == 2


def test_fairseq_loads_what_is_found(folder, monkeypatch):
    """Of the run's own last checkpoint; a file that the user names is never replaced."""
    loaded = []
    monkeypatch.setattr("fairseq.trainer.PathManager.isfile", lambda path: loaded.append(path))
    cfg = SimpleNamespace(checkpoint=SimpleNamespace(save_dir=str(folder)))
    trainer = SimpleNamespace(cfg=cfg, checkpoint_suffix="", data_parallel_world_size=1)
    last, best, other = (str(folder / f"checkpoint_{name}.pt") for name in ("last", "best", "1_2"))
    flip(folder / "checkpoint_last.pt")
    flip(folder / "checkpoint_1_2.pt")
    for given in (last, other):
        Trainer.load_checkpoint(trainer, given)
    assert loaded == [best, other]
