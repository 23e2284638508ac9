"""The shims of esrl_fairseq/compat.py."""

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import utils
from fairseq.modules.dynamic_convolution import DynamicConv1dTBC, DynamicConv_scripatable
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationConfig

from esrl_fairseq import compat
from esrl_fairseq.errors import EsrlError

PACKAGE = Path(compat.__file__).resolve().parent


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
    for old, new in compat.MOVED.items():
        module = importlib.import_module(f"esrl_fairseq.{new}")
        assert importlib.import_module(f"esrl_fairseq.{old}") is module


def convolution(kernel, padding, seed=1):
    """A dynamic one with weights far from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = DynamicConv_scripatable(8, kernel, padding, num_heads=2, weight_softmax=True)
        return layer.requires_grad_(False), 3 * torch.randn(9, 2, 8)


@pytest.mark.parametrize("kernel", [1, 3, 9, 10, 31])
def test_dynamic_convolution_in_one_pass_is_that_of_steps(kernel):
    """Of rows shorter and longer than the kernel; what follows in a row changes nothing."""
    compat.apply()
    compat.apply()
    layer, x = convolution(kernel, kernel - 1)
    state = {}
    steps = torch.cat([layer(x[t : t + 1], incremental_state=state) for t in range(len(x))])
    for length in range(1, len(x) + 1):
        assert torch.allclose(layer(x[:length]), steps[:length], atol=1e-5)
    assert steps.std() > 0.1


def test_dynamic_convolution_of_an_encoder_is_fairseqs(monkeypatch):
    """It sees both sides."""
    compat.apply()
    monkeypatch.delattr(DynamicConv1dTBC, "_forward_expanded")
    stock = DynamicConv_scripatable._forward_unfolded.__wrapped__
    for kernel in (3, 31):
        layer, x = convolution(kernel, kernel // 2)
        assert torch.equal(layer(x), stock(layer, x, None, x))


def test_tasks_of_pretrained_models_load_their_data(corpus, tmp_path):
    """Their options and dictionaries, which fairseq's own do not find."""
    compat.apply()
    cfg = argparse.Namespace(
        data=str(corpus.data), source_lang="de", target_lang="en", langs="de,en",
        left_pad_source=True, left_pad_target=False, dataset_impl=None, upsample_primary=1,
        load_alignments=False,
    )  # fmt: skip
    task = TASK_REGISTRY["translation_from_pretrained_bart"].setup_task(cfg)
    task.load_dataset("valid")
    assert int(task.datasets["valid"][0]["target"][-1]) == task.target_dictionary.index("[en]")
    plain = TASK_REGISTRY["translation"].setup_task(cfg).target_dictionary
    masked = TASK_REGISTRY["translation_from_pretrained_xlm"].setup_task(cfg).target_dictionary
    assert masked.symbols == [*plain.symbols[:4], "<mask>", *plain.symbols[4:]]
    assert masked.mask() == 4 and masked.count[5:] == plain.count[4:]


def test_fairseqs_own_tasks_have_the_same_batches_in_whatever_epoch_they_are_made(corpus):
    """That is when a run goes on in a later one; sentences of equal length are in another order by
    another seed."""
    compat.apply()

    def batches(epoch):
        cfg = TranslationConfig(data=str(corpus.data), source_lang="de", target_lang="en")
        cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1
        task = TASK_REGISTRY["translation"].setup_task(cfg)
        task.load_dataset("train")
        how = {"max_sentences": 8, "seed": 1, "epoch": epoch}
        found = task.get_batch_iterator(task.datasets["train"], **how).frozen_batches
        return [list(batch) for batch in found]

    first = batches(1)
    assert len(first) == 25 and batches(3) == first


@pytest.mark.parametrize("given", ["path", "relative", "link", "name", "up"])
def test_user_dir_may_name_the_imported_package_in_any_way(given, tmp_path, monkeypatch):
    compat.apply()
    (tmp_path / "link").symlink_to(PACKAGE)
    monkeypatch.chdir(tmp_path)
    ways = {
        "path": str(PACKAGE), "relative": os.path.relpath(PACKAGE), "link": "link",
        "name": "esrl_fairseq", "up": f"{PACKAGE}/../esrl_fairseq/",
    }  # fmt: skip
    before = list(sys.path)
    utils.import_user_module(argparse.Namespace(user_dir=ways[given]))
    assert sys.path == before and "link" not in sys.modules


def test_user_dir_that_names_another_copy(tmp_path, monkeypatch):
    """One sentence; and a folder that there is not remains fairseq's to refuse, wherever one is."""
    compat.apply()
    clone = tmp_path / "esrl_fairseq"
    (clone / "esrl_fairseq").mkdir(parents=True)
    monkeypatch.chdir(clone)
    for given in ("../esrl_fairseq", "esrl_fairseq", str(clone)):
        with pytest.raises(EsrlError, match=f"in {PACKAGE} is imported already"):
            utils.import_user_module(argparse.Namespace(user_dir=given))
    with pytest.raises(FileNotFoundError):
        utils.import_user_module(argparse.Namespace(user_dir="no_such_folder"))


def test_repository_of_another_copy(tmp_path, monkeypatch):
    """Whatever it is called."""
    compat.apply()
    clone = tmp_path / "a_clone"
    (clone / "esrl_fairseq").mkdir(parents=True)
    shutil.copy(PACKAGE.parent / "__init__.py", clone)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(EsrlError, match=f"{clone} has a copy .* give --user-dir {PACKAGE}"):
        utils.import_user_module(argparse.Namespace(user_dir=str(clone)))
