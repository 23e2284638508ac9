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


def test_modules_are_found_under_their_old_names():
    from esrl_fairseq.generation import RowSampler
    from esrl_fairseq.text import UNK_IN_HYPOTHESIS

    from esrl_fairseq.rescoring import rescore
    from esrl_fairseq.sampling import generation

    assert RowSampler is generation.RowSampler and callable(rescore) and UNK_IN_HYPOTHESIS
