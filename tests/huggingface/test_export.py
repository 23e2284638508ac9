"""``python -m esrl_fairseq.huggingface export`` of what is no model of Hugging Face."""

import sys
from argparse import Namespace

import pytest
import torch

import esrl_fairseq  # noqa: F401 (torch's safe loader then knows what fairseq's checkpoints hold)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface.__main__ import main

WEIGHTS = {"encoder.embed_tokens.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    "found, words",
    [
        (
            {"cfg": {"model": Namespace(arch="transformer_tiny")}, "model": WEIGHTS},
            "is a checkpoint of --arch transformer_tiny, which is no model of the Hugging Face",
        ),
        (
            {"cfg": {"model": {"_name": "transformer_lm"}}, "model": WEIGHTS},
            "is a checkpoint of --arch transformer_lm, which is no model of the Hugging Face",
        ),
        ({"cfg": None, "model": WEIGHTS}, "cannot be read as a checkpoint .*TypeError"),
        ({"cfg": {"model": {}}}, "cannot be read as a checkpoint .*KeyError"),
        (None, "there is no checkpoint"),
    ],
)
@pytest.mark.parametrize("model", [[], ["--hf-model", "some/model"]])
def test_other_checkpoints(found, words, model, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    if found is not None:
        torch.save(found, path)
    given = ["export", "--checkpoint", str(path), *model, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["python -m esrl_fairseq.huggingface", *given])
    with pytest.raises(EsrlError, match=f"checkpoint.pt.*{words}|{words}.*checkpoint.pt"):
        main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["marian", "pegasus", "fsmt"])
def test_positions_that_were_trained(name, tmp_path, monkeypatch):
    """The library computes sinusoids anew when it loads: a folder cannot hold others."""
    tiny_seq2seq = pytest.importorskip("tiny_seq2seq")
    start = str(tmp_path / "start")
    tiny_seq2seq.save(start, name)
    model = tiny_seq2seq.load(start)
    weights = {f"decoder.model.{key}": x for key, x in model.state_dict().items()}
    path = tmp_path / "checkpoint.pt"

    def export(out):
        torch.save({"cfg": {"model": {"hf_model": start}}, "model": weights}, path)
        given = ["export", "--checkpoint", str(path), "--out", str(tmp_path / out)]
        monkeypatch.setattr(sys, "argv", ["python -m esrl_fairseq.huggingface", *given])
        main()

    export("whole")
    again = tiny_seq2seq.load(str(tmp_path / "whole")).state_dict()
    assert all(torch.equal(again[key], x) for key, x in model.state_dict().items())
    positions = "decoder.model.model.decoder.embed_positions.weight"
    weights[positions] = weights[positions] + 1e-3
    with pytest.raises(EsrlError, match="checkpoint.pt has trained positions, .* train again"):
        export("trained")
    assert not (tmp_path / "trained").exists()
