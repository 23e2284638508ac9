"""The task ``esrl_reward_model``: trains a reward model, and reads one from its checkpoint."""

import io
import logging
import os
from collections.abc import Callable, Iterator
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
from esrl_fairseq.checks.numbers import one_line, refuse_bad_parameters
from esrl_fairseq.checks.vocabulary import check_vocabulary_on_load
from esrl_fairseq.compat import at_bad_numbers
from esrl_fairseq.data.batches import CheckedBatches
from esrl_fairseq.data.folders import FoundData
from esrl_fairseq.data.lines import places, split_name
from esrl_fairseq.data.subwords import dictionary_words, markings
from esrl_fairseq.data.text import UNK_IN_HYPOTHESIS, source_text
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.reward_models.data import (
    JudgedOutputs,
    Preferences,
    Ratings,
    read_preferences,
    read_ratings,
)
from esrl_fairseq.reward_models.model import RewardModel, encoder_of
from esrl_fairseq.start.comparing import checks_of_start
from esrl_fairseq.start.reading import read_checkpoint

logger = logging.getLogger(__name__)

NAME = "esrl_reward_model"
UNUSED = "decoder|share_|merge_src_tgt|adaptive|cross_"  # options of what the encoder is not
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
        unknown = bool(line.eq(self.dictionary.unk()).any())
        return unknown or torch.equal(self.ids(self.of(line)), line)

    def of(self, ids: Any) -> str:
        """The text of token ids."""
        return source_text(ids, self.dictionary, "subword_nmt" if self.bpe else None)


@register_task(NAME, dataclass=RewardModelConfig)
class RewardModelTask(FoundData, CheckedBatches, TranslationTask):
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

    def checks_of_start(self, trainer: Any) -> Iterator[Callable[[], None]]:
        """What refuses a start model with another encoder."""
        return checks_of_start(trainer, ignore=UNUSED)

    def before_loading(self, trainer: Any) -> None:
        """Make these checks; see compat.py."""
        for check in self.checks_of_start(trainer):
            check()

    def after_loading(self, trainer: Any, epoch_itr: Any) -> None:
        """Refuse parameters that are not numbers; end in a sentence where gradients are none."""
        refuse_bad_parameters(trainer.get_model(), "the model that the run starts from")
        at_bad_numbers(trainer, self.bad_gradients)

    def bad_gradients(self, error: FloatingPointError) -> None:
        """fairseq has no use for an update's gradients.

        Raises:
            EsrlError: with what it says; the last checkpoint stays.
        """
        raise EsrlError(f"{one_line(error)}: look at the ratings and preferences, or lower --lr")

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        pairs = self.datasets[split]
        paths = utils.split_paths(self.cfg.data)
        shard = (epoch - 1) % len(paths) if split == self.cfg.train_subset else 0
        prefix = os.path.join(paths[shard], split)
        name = split_name(self.cfg.data, split, self.cfg.train_subset, epoch)
        if pairs.tgt is None:
            raise EsrlError(
                f"{prefix} has no target side, which holds the judged outputs: run "
                "fairseq-preprocess without --only-source"
            )
        text, languages = self.text.of, (self.cfg.source_lang, self.cfg.target_lang)
        for side, language in zip((pairs.src, pairs.tgt), languages):
            refuse_empty_lines(side, self.src_dict, name, language, text)
        ratings, preferences = judgements(prefix, len(pairs))
        if split == self.cfg.train_subset:
            self.check_codes(pairs.tgt, name)
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

    def check_codes(self, outputs: Any, name: str) -> None:
        """Refuse codes that the data were not made with: the reward would see other words.

        Raises:
            EsrlError: the data's text becomes something else than the data.
        """
        for marking, word in markings(dictionary_words(self.src_dict))[:1]:
            if marking.post_process != "subword_nmt":
                raise EsrlError(
                    f"the data hold sub-words made by {marking.maker} (such as {word!r}), which "
                    "the reward model cannot make from text: split them with subword-nmt, or not "
                    "at all"
                )
            if not self.state.codes:
                raise EsrlError(
                    f"the data hold sub-words (such as {word!r}), which the reward model needs to "
                    "make from text: give the codes that they were made with, --subword-codes FILE"
                )
        text = self.text
        lines = [outputs[i] for i in range(min(len(outputs), COMPARED_LINES))]
        wrong = [number for number, line in enumerate(lines) if not text.agrees(line)]
        if len(wrong) > len(lines) / 10:
            raise EsrlError(
                f"--subword-codes {self.cfg.subword_codes} are not the codes of the data: of "
                f"{len(lines)} output lines {len(wrong)} are split in another way, the first is "
                f"{places(outputs, wrong[:1], name, self.cfg.target_lang)[0]}"
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
    mend = f"give a checkpoint of the task {NAME}"
    task_name = read_checkpoint(path, "--reward-model", mend).cfg.task._name
    if task_name != NAME:
        raise EsrlError(
            f"--reward-model {path} is no reward model but the checkpoint of a model for the task "
            f"{task_name}: {mend}"
        )
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    kept = state.get("task_state") or {}
    if "dictionary" not in kept:
        raise EsrlError(f"--reward-model {path} has no dictionary, it is not whole: {mend}")
    cfg = state["cfg"]
    dictionary = Dictionary.load(io.StringIO(kept["dictionary"]))
    cfg.task.subword_codes = None  # the file may be gone; its contents are here
    task = RewardModelTask(cfg.task, dictionary, dictionary)
    task.load_state_dict(kept)
    with torch.random.fork_rng(devices=[]):
        model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    refuse_bad_parameters(model, f"--reward-model {path}")
    model.requires_grad_(False)
    return model.eval(), task.text
