"""The shims of esrl_fairseq/compat.py."""

import argparse
import importlib.util
import sys

import numpy as np
import pytest
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


@pytest.mark.parametrize(
    "source, loads", [("raise OSError('libcudart.so.13')", False), ("FINE = 1", True)]
)
def test_torchaudio_that_does_not_load_is_none(source, loads, tmp_path, monkeypatch):
    """So to `import` and to what looks for it, as transformers does."""
    (tmp_path / "torchaudio.py").write_text(source)
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # restored at the end
    del sys.modules["torchaudio"]
    monkeypatch.syspath_prepend(tmp_path)
    compat.hide_torchaudio_that_does_not_load()
    assert (importlib.util.find_spec("torchaudio") is not None) == loads
    compat.hide_torchaudio_that_does_not_load()
    if loads:
        assert importlib.import_module("torchaudio").FINE
    else:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("torchaudio")


def test_modules_are_found_under_their_old_names():
    from esrl_fairseq.generation import RowSampler
    from esrl_fairseq.text import UNK_IN_HYPOTHESIS

    from esrl_fairseq.rescoring import rescore
    from esrl_fairseq.sampling import generation

    assert RowSampler is generation.RowSampler and callable(rescore) and UNK_IN_HYPOTHESIS
