"""Files that are checkpoints of fairseq, and one sentence for those that are none."""

import argparse
import os
import pickle
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

import esrl_fairseq  # noqa: F401 (torch's safe loader then knows what fairseq's checkpoints hold)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.reading import read_checkpoint

EXTRA = {"train_iterator": {"epoch": 3}, "rl": torch.arange(3)}
HISTORY = [{"optimizer_name": "Adam", "lr_scheduler_state": {}, "num_updates": 5}]
MODEL = {"encoder.weight": torch.ones(3, 2), "bias": torch.ones(())}
WHOLE = {"model": MODEL, "extra_state": EXTRA, "optimizer_history": HISTORY}


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_configurations(zipped, tmp_path):
    """Of new checkpoints and of old ones, in torch's new format and in its old one."""
    path = str(tmp_path / "new.pt")
    cfg = {"model": {"_name": "transformer"}, "task": {"_name": "translation"}}
    saved = {**WHOLE, "args": None, "cfg": cfg}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path, "--restore-file")
    assert found.shapes == {"encoder.weight": (3, 2), "bias": ()}
    assert found.cfg.model._name == "transformer" and OmegaConf.is_config(found.cfg)
    assert found.extra_state["train_iterator"]["epoch"] == 3
    torch.save(torch.ones(9), path)  # it may be written over
    assert found.extra_state["rl"].tolist() == [0, 1, 2]


def test_old_options(tmp_path):
    path = str(tmp_path / "old.pt")
    args = argparse.Namespace(arch="transformer", task="translation", encoder_layers=3, min_lr=0.0)
    torch.save({**WHOLE, "args": args}, path)
    found = read_checkpoint(path, "--restore-file")
    assert found.cfg.model.encoder_layers == 3 and found.cfg.task._name == "translation"


def folder(path):
    path.mkdir()
    (path / "checkpoint_best.pt").touch()


def hugging_face(path):
    path.mkdir()
    (path / "config.json").touch()


def cut_off(path):
    torch.save({**WHOLE, "cfg": {}}, path)
    path.write_bytes(path.read_bytes()[:-100])


def cut_off_old(path):
    torch.save({**WHOLE, "cfg": {}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-10])


def an_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text", "text")


def stripped(path):
    torch.save({"model": MODEL, "args": argparse.Namespace(arch="transformer")}, path)


def malice(path):
    torch.save({**WHOLE, "cfg": Malice(path.with_name("made"))}, path, pickle_module=pickle)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (folder, "is a folder (with checkpoint_best.pt)"),
        (hugging_face, "is a folder (a model of Hugging Face is for --hf-mode"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("Grüße 8\n"), "is a text file"),
        (lambda path: path.write_bytes(bytes(range(99))), "is no checkpoint"),
        (lambda path: path.write_bytes(b"GGUF\0\0"), "holds weights alone (a model of Hugging"),
        (lambda path: path.write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "holds weights alone (a model"),
        (cut_off, "is cut off, its end is missing"),
        (cut_off_old, "is cut off, damaged or no checkpoint"),
        (an_archive, "is cut off, damaged or no checkpoint"),
        (lambda path: torch.save(MODEL, path), "holds weights alone (encoder.weight, …) without"),
        (lambda path: torch.save([1], path), "is no checkpoint of fairseq but holds a list"),
        (lambda path: torch.save({}, path), "it has no parameters (model) and no options (cfg"),
        (lambda path: torch.save(WHOLE, path), "fairseq: it has no options (cfg or args)"),
        (stripped, "lacks what fairseq goes on from"),
        (malice, "mkdir, which torch's safe loader refused; nothing of it was executed"),
    ],
)
def test_what_is_no_checkpoint(make, words, tmp_path):
    path = tmp_path / "start.pt"
    make(path)
    with pytest.raises(EsrlError) as found:
        read_checkpoint(str(path), "--finetune-from-model")
    sentence = str(found.value)
    assert sentence.startswith(f"--finetune-from-model {path} ") and words in sentence, sentence
    assert ": give a checkpoint of fairseq-train" in sentence and "\n" not in sentence
    assert not (tmp_path / "made").exists()
