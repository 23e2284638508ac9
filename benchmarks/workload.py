"""Models and batches to measure with: random ones that need no data set, or trained ones."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, LanguagePairDataset, ListDataset
from fairseq.models.transformer import TransformerModel

from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.task import EsrlTranslationConfig, EsrlTranslationTask

SIZES = {  # layers on each side, width, FFN, heads, words
    "tiny": (1, 16, 32, 2, 64),
    "6x": (6, 64, 128, 8, 512),  # as many operations as "60M", little work
    "3M": (3, 160, 640, 4, 6048),  # the Multi30k model
    "35M": (6, 512, 1024, 4, 10000),  # transformer_iwslt_de_en
    "60M": (6, 512, 2048, 8, 32000),  # transformer, the "base" one
}
LENGTH_SPREAD = 0.35
"""Standard deviation of the logarithm of random sources' lengths."""
JOINT_EVERY = 5
"""Every so many-th random word is a sub-word that is joined with its successor."""


@dataclass
class Lengths:
    """The range of samples' lengths, EOS not counted: at most a·x + b, at least ``minimum``."""

    a: float
    b: int
    minimum: int

    @classmethod
    def fixed(cls, length: int) -> Lengths:
        """Every sample has ``length`` tokens."""
        return cls(0, length, length)


TRAINED_LENGTHS = Lengths(1.2, 10, 1)


@dataclass
class Workload:
    """A model and batches of inputs for it.

    Attributes:
        params: the size's name.
        model: in eval mode, on its device.
        args: the model's options, as in a fairseq checkpoint.
        task: the real ``esrl_translation`` task with its dataset in memory.
        batches: fairseq batches on the device, sorted by length.
        lengths: what samples are limited to, in every engine alike.
        checkpoint: file and data folder of a trained model, None for a random one.
    """

    params: str
    model: Any
    args: argparse.Namespace
    task: EsrlTranslationTask
    batches: list[dict[str, Any]]
    lengths: Lengths
    device: str
    dtype: torch.dtype
    checkpoint: tuple[str, str] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What every row tells of it."""
        return {
            "params": self.params,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "weights": "trained" if self.checkpoint else "random",
            "length": None if self.checkpoint else self.lengths.b,  # None: the model's own
            "inputs": sum(len(batch["id"]) for batch in self.batches),
        }

    def criterion(self, **options: Any) -> EsrlCriterion:
        """The real criterion for the task."""
        return EsrlCriterion(EsrlCriterionConfig(**options), self.task)


def workloads(options: argparse.Namespace, batches: int = 1) -> Any:
    """The workloads that the options ask for, one after the other."""
    if options.checkpoint:
        yield trained(options, batches)
        return
    for name in options.params:
        yield random(name, options, batches)


def random(name: str, options: argparse.Namespace, batches: int = 1) -> Workload:
    """A random-initialised Transformer, and sources of random words and realistic lengths."""
    known = {size.lower().removesuffix("m"): size for size in SIZES}
    size = known.get(name.lower().removesuffix("m"), "")
    if not size:
        raise SystemExit(f"--params {name}: choose among {', '.join(SIZES)}")
    dictionary = random_dictionary(SIZES[size][-1])
    task = make_task(dictionary, dictionary, Lengths.fixed(options.length))
    dataset = random_pairs(dictionary, options.inputs * batches, options.length, options.seed)
    args = model_args(*SIZES[size][:-1])
    torch.manual_seed(options.seed)
    model = TransformerModel.build_model(copy.copy(args), task)
    return _assemble(size, model, args, task, dataset, options, batches)


def trained(options: argparse.Namespace, batches: int = 1) -> Workload:
    """A checkpoint with its data."""
    overrides = {"data": options.data}
    models, cfg, stock = checkpoint_utils.load_model_ensemble_and_task(
        [options.checkpoint], arg_overrides=overrides
    )
    stock.load_dataset(options.subset)
    task = make_task(stock.source_dictionary, stock.target_dictionary, TRAINED_LENGTHS)
    million = sum(p.numel() for p in models[0].parameters()) / 1e6
    dataset = stock.dataset(options.subset)
    work = _assemble(f"{million:.0f}M", models[0], cfg.model, task, dataset, options, batches)
    work.lengths = TRAINED_LENGTHS
    work.checkpoint = (options.checkpoint, options.data)
    return work


def _assemble(
    params: str,
    model: Any,
    args: argparse.Namespace,
    task: EsrlTranslationTask,
    dataset: LanguagePairDataset,
    options: argparse.Namespace,
    batches: int,
) -> Workload:
    """Choose the batches and put everything on its device."""
    dtype = common.DTYPES[options.dtype]
    task.datasets["train"] = dataset
    model = model.to(options.device, dtype).eval()
    wanted = batches * options.inputs
    if wanted > len(dataset):
        raise SystemExit(f"--subset {options.subset} has {len(dataset)} inputs, not {wanted}")
    # As in training: inputs of similar length go together. Batches of all lengths, evenly spaced.
    shuffled = np.random.default_rng(options.seed).permutation(len(dataset)).tolist()
    ordered = sorted(shuffled, key=lambda i: -dataset.src_sizes[i])
    starts = [int((n + 0.5) * len(dataset) / batches - options.inputs / 2) for n in range(batches)]
    groups = [ordered[start : start + options.inputs] for start in starts]
    made = [dataset.collater([dataset[i] for i in group]) for group in groups]
    if options.device == "cuda":
        made = [utils.move_to_cuda(batch) for batch in made]
    lengths = Lengths.fixed(options.length)
    return Workload(params, model, args, task, made, lengths, options.device, dtype)


def make_task(source: Dictionary, target: Dictionary, lengths: Lengths) -> EsrlTranslationTask:
    """The real task, its store in memory and dynamic sampling off until asked for."""
    cfg = EsrlTranslationConfig()
    cfg.source_lang, cfg.target_lang, cfg.train_subset, cfg.save_dir = "src", "tgt", "train", None
    cfg.sample_max_len_a, cfg.sample_max_len_b = lengths.a, lengths.b
    cfg.sample_min_len, cfg.elimination_ratio = lengths.minimum, "0"
    return EsrlTranslationTask(cfg, source, target)


def model_args(layers: int, width: int, ffn: int, heads: int) -> argparse.Namespace:
    """Options of fairseq's ``transformer``, all embeddings shared and no dropout."""
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {
            "layers": layers,
            "embed_dim": width,
            "ffn_embed_dim": ffn,
            "attention_heads": heads,
            "normalize_before": False,
        }.items()
    }
    return argparse.Namespace(
        arch="transformer",
        task="translation",
        source_lang="src",
        target_lang="tgt",
        criterion="esrl",
        dropout=0.0,
        share_all_embeddings=True,
        share_decoder_input_output_embed=True,
        max_source_positions=1024,
        max_target_positions=1024,
        **sides,
    )


def random_dictionary(words: int) -> Dictionary:
    """``words`` entries, fairseq's four special symbols included."""
    dictionary = Dictionary()
    for i in range(words - len(dictionary)):
        dictionary.add_symbol(f"w{i}@@" if i % JOINT_EVERY == 0 else f"w{i}")
    return dictionary


def random_pairs(dictionary: Dictionary, pairs: int, length: int, seed: int) -> LanguagePairDataset:
    """Sentence pairs of random words, lengths log-normal about ``length`` (EOS not counted)."""
    draw = np.random.default_rng(seed)

    def side() -> ListDataset:
        lengths = np.exp(draw.normal(np.log(length), LENGTH_SPREAD, pairs))
        lengths = np.clip(lengths.round().astype(int), 2, 3 * length)
        words = [draw.integers(dictionary.nspecial, len(dictionary), n) for n in lengths]
        lines = [torch.tensor([*line, dictionary.eos()]) for line in words]
        return ListDataset(lines, lengths + 1)

    source, target = side(), side()
    return LanguagePairDataset(
        source, source.sizes, dictionary, target, target.sizes, dictionary, shuffle=False
    )


def fairseq_files(work: Workload, folder: Path) -> tuple[str, str]:
    """Checkpoint file and data folder of the model; those of a random one are written first."""
    if work.checkpoint:
        return work.checkpoint
    for lang, dictionary in (("src", work.task.src_dict), ("tgt", work.task.tgt_dict)):
        dictionary.save(str(folder / f"dict.{lang}.txt"))
    state = {name: value.float().cpu() for name, value in work.model.state_dict().items()}
    torch.save({"args": work.args, "model": state}, folder / "model.pt")
    return str(folder / "model.pt"), str(folder)
