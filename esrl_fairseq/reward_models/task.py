"""The task ``esrl_reward_model``: trains a reward model, and reads one from its checkpoint."""

import io
import logging
import os
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from subword_nmt.apply_bpe import BPE
from torch import Tensor

from esrl_fairseq.checks.data import refuse_empty_lines
from esrl_fairseq.checks.vocabulary import check_vocabulary_on_load
from esrl_fairseq.data.batches import SameBatches
from esrl_fairseq.data.folders import FoundData
from esrl_fairseq.data.text import UNK_IN_HYPOTHESIS
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.reward_models.data import (
    JudgedOutputs,
    Preferences,
    Ratings,
    read_preferences,
    read_ratings,
)
from esrl_fairseq.reward_models.model import RewardModel, encoder_of

logger = logging.getLogger(__name__)

NAME = "esrl_reward_model"
COMPARED_LINES = 100  # of the training data, to see whether BPE codes are theirs


@dataclass
class SubwordConfig(FairseqDataclass):
    """Options of a reward model's text."""

    subword_codes: Optional[str] = field(
        default=None,
        metadata={
            "help": "subword-nmt's codes that the data were made with; they are kept in the "
            "checkpoint, because the reward `model` gets text. None: words are not split"
        },
    )


@dataclass
class RewardModelConfig(SubwordConfig, TranslationConfig):
    """With the translation task's, for data whose target side holds the judged outputs."""


class SubwordText:
    """Text to ids, with the dictionary and the codes of the training data.

    Args:
        codes: contents of subword-nmt's file; empty: words are not split.
    """

    def __init__(self, dictionary: Dictionary, codes: str):
        self.dictionary = dictionary
        # What other parts of this package print for unknown words stays one unknown word.
        unknown = [dictionary.unk_word, UNK_IN_HYPOTHESIS]
        self.bpe = BPE(io.StringIO(codes), glossaries=unknown) if codes else None

    def ids(self, text: str) -> Tensor:
        """int64 ``[length]``, with EOS."""
        words = self.bpe.process_line(text) if self.bpe else text
        return self.dictionary.encode_line(words, add_if_not_exist=False).long()

    def agrees(self, line: Tensor) -> bool:
        """Whether a line of the training data is what its text becomes; unknown words tell not."""
        joints = "subword_nmt" if self.bpe else None
        text = self.dictionary.string(line, joints)
        return bool(line.eq(self.dictionary.unk()).any()) or torch.equal(self.ids(text), line)


@register_task(NAME, dataclass=RewardModelConfig)
class RewardModelTask(FoundData, SameBatches, TranslationTask):
    """Regression on ratings and Bradley-Terry on preferences, of outputs given their sources.

    ``--arch`` and its options choose a model as for translation; its encoder is what is trained.
    """

    cfg: RewardModelConfig

    def __init__(self, cfg: RewardModelConfig, src_dict: Dictionary, tgt_dict: Dictionary):
        super().__init__(cfg, src_dict, tgt_dict)
        if cfg.eval_bleu:
            raise EsrlError("a reward model writes no text: leave out --eval-bleu")
        if src_dict.symbols != tgt_dict.symbols:
            raise EsrlError(
                "a reward model reads source and output with one dictionary, but the data have "
                "two: run fairseq-preprocess with --joined-dictionary"
            )
        self.mean_rating, self.rating_deviation = 0.0, 1.0
        # fairseq keeps this in checkpoints as the task's state.
        self.state.merge_state_dict(
            {"dictionary": written(src_dict), "codes": read_codes(cfg.subword_codes)}
        )

    @property
    def text(self) -> SubwordText:
        """From text to what the model reads."""
        return SubwordText(self.source_dictionary, self.state.codes)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> RewardModel:
        """The encoder of the model that ``--arch`` names, with a head."""
        whole = super().build_model(cfg, from_checkpoint)
        dictionary = self.source_dictionary
        model = RewardModel(encoder_of(whole), dictionary.pad(), dictionary.eos())
        check_vocabulary_on_load(model, dictionary, dictionary)
        return model

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        pairs = self.datasets[split]
        paths = utils.split_paths(self.cfg.data)
        shard = (epoch - 1) % len(paths) if split == self.cfg.train_subset else 0
        prefix = os.path.join(paths[shard], split)
        if pairs.tgt is None:
            raise EsrlError(
                f"{prefix} has no target side, which holds the judged outputs: run "
                "fairseq-preprocess without --only-source"
            )
        refuse_empty_lines(pairs.src, pairs.src_sizes, pairs.src_dict, f"source side of {split}")
        refuse_empty_lines(
            pairs.tgt, pairs.tgt_sizes, pairs.tgt_dict, f"target side (the outputs) of {split}"
        )
        ratings, preferences = judgements(prefix, len(pairs))
        if split == self.cfg.train_subset:
            self.check_codes(pairs.tgt)
        self.standardise()
        ratings = (ratings - self.mean_rating) / self.rating_deviation
        self.datasets[split] = JudgedOutputs(pairs, ratings, preferences, self.src_dict.pad())
        rated = int((~np.isnan(ratings)).sum())
        logger.info("%s: %d ratings, %d preferences", prefix, rated, len(preferences))

    def max_positions(self) -> int:
        """Tokens of the longest row, source and output together."""
        return self.cfg.max_source_positions

    def standardise(self) -> None:
        """Take mean and deviation of the training ratings, of the first shard."""
        path = os.path.join(utils.split_paths(self.cfg.data)[0], f"{self.cfg.train_subset}.ratings")
        if not os.path.exists(path):
            return
        with open(path, encoding="utf-8") as f:
            ratings = read_ratings(path, sum(1 for _ in f))
        ratings = ratings[~np.isnan(ratings)]
        if not len(ratings) or ratings.std() == 0:
            raise EsrlError(f"the ratings in {path} are all equal: there is nothing to learn")
        self.mean_rating, self.rating_deviation = float(ratings.mean()), float(ratings.std())

    def check_codes(self, outputs: Any) -> None:
        """Refuse codes that the data were not made with: the reward would see other words.

        Raises:
            EsrlError: the data's text becomes something else than the data.
        """
        if not self.state.codes and any(word.endswith("@@") for word in self.src_dict.symbols):
            raise EsrlError(
                "the data hold sub-words (with @@), which the reward model needs to make from "
                "text: give the codes that they were made with, --subword-codes FILE"
            )
        text = self.text
        lines = [outputs[i] for i in range(min(len(outputs), COMPARED_LINES))]
        wrong = [number for number, line in enumerate(lines, 1) if not text.agrees(line)]
        if len(wrong) > len(lines) / 10:
            raise EsrlError(
                f"--subword-codes {self.cfg.subword_codes} are not the codes of the data: of "
                f"{len(lines)} output lines {len(wrong)} are split in another way, the first is "
                f"line {wrong[0]}"
            )


def judgements(prefix: str, lines: int) -> tuple[Ratings, Preferences]:
    """What people thought of the ``lines`` of a split.

    Raises:
        EsrlError: nothing is known, or a file is wrong.
    """
    ratings = read_ratings(f"{prefix}.ratings", lines)
    preferences = read_preferences(f"{prefix}.preferences", lines)
    if np.isnan(ratings).all() and not len(preferences):
        raise EsrlError(
            f"there are no judgements of {prefix}: write {prefix}.ratings (a number a line) or "
            f"{prefix}.preferences (two numbers of lines a line, the preferred output first)"
        )
    return ratings, preferences


def read_codes(path: Optional[str]) -> str:
    """Contents of subword-nmt's file; empty without one.

    Raises:
        EsrlError: it cannot be read.
    """
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeError) as error:
        raise EsrlError(f"--subword-codes {path} cannot be read: {error}") from None


def written(dictionary: Dictionary) -> str:
    """The dictionary as the text of its file."""
    text = io.StringIO()
    dictionary.save(text)
    return text.getvalue()


def load_reward_model(path: str) -> tuple[RewardModel, SubwordText]:
    """A trained reward model, on the CPU in eval mode, and its way from text to ids.

    The checkpoint is all that is needed. Draws no random numbers.

    Raises:
        EsrlError: there is no such file, or it is not a reward model's checkpoint.
    """
    mend = f"give --reward-model a checkpoint of the task {NAME}"
    if not os.path.exists(path):
        raise EsrlError(f"there is no reward model {path}: {mend}")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
        task_name, kept = state["cfg"].task._name, state.get("task_state") or {}
    except Exception as error:  # whatever a file that is no checkpoint leads to
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise EsrlError(f"{path} cannot be loaded as a reward model ({why}): {mend}") from error
    if task_name == NAME and "dictionary" not in kept:
        raise EsrlError(f"{path} has no dictionary, it is not whole: {mend}")
    if task_name != NAME:
        raise EsrlError(
            f"{path} is no reward model but the checkpoint of a model for the task {task_name}: "
            f"{mend}"
        )
    cfg = state["cfg"]
    dictionary = Dictionary.load(io.StringIO(kept["dictionary"]))
    cfg.task.subword_codes = None  # the file may be gone; its contents are here
    task = RewardModelTask(cfg.task, dictionary, dictionary)
    task.load_state_dict(kept)
    with torch.random.fork_rng(devices=[]):
        model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    model.requires_grad_(False)
    return model.eval(), task.text
