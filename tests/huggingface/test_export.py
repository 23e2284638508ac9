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
