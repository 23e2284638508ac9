"""The shims of esrl_fairseq/compat.py."""

import argparse

import numpy as np
import torch

from esrl_fairseq import compat


def test_checkpoints_with_numpy_are_read(tmp_path):
    """As fairseq's translation task leaves them with --eval-bleu: sums of counts in its meters."""
    meters = {"_bleu_counts": np.array([4, 2, 1, 0]), "sum": np.float64(1.5), "n": np.int64(3)}
    saved = {"args": argparse.Namespace(lr=[1.0]), "meters": meters}
    torch.save(saved, tmp_path / "checkpoint.pt")
    compat.apply()
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert loaded["args"] == saved["args"]
    np.testing.assert_equal(loaded["meters"], meters)
