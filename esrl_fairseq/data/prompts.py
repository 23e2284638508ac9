"""Prompts for language models: the beginnings of a data set's lines."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.tasks.language_modeling import LanguageModelingTask

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling.conditioning import is_decoder_only


class PromptSide:
    """The start symbol and then the first words of each line: what LanguagePairDataset takes.

    Args:
        lines: a fairseq data set of lines, each with its EOS.
        most: words of a line that are kept; None keeps all.
        start: id of the start symbol.
    """

    supports_prefetch = False

    def __init__(self, lines: Any, most: int | None, start: int):
        words = np.asarray(lines.sizes) - 1
        self.kept = words if most is None else np.minimum(words, most)
        self.lines, self.start = lines, start
        self.sizes = self.kept + 1

    def __getitem__(self, index: int) -> torch.Tensor:
        line = self.lines[index]
        return torch.cat([line.new_tensor([self.start]), line[: self.kept[index]]])

    def __len__(self) -> int:
        return len(self.lines)


class ContinuationSide:
    """The rest of each line, with its EOS."""

    supports_prefetch = False

    def __init__(self, prompts: PromptSide):
        self.lines, self.kept = prompts.lines, prompts.kept
        self.sizes = np.asarray(self.lines.sizes) - self.kept

    def __getitem__(self, index: int) -> torch.Tensor:
        rest: torch.Tensor = self.lines[index][self.kept[index] :]
        return rest

    def __len__(self) -> int:
        return len(self.lines)


def prompt_dataset(
    lines: Any, dictionary: Dictionary, most: int | None, start: int, shuffle: bool
) -> LanguagePairDataset:
    """Prompts as sources, padded on the right; where they are parts of lines, the rests as targets.

    For the arguments see :class:`PromptSide`.
    """
    prompts = PromptSide(lines, most, start)
    target = None if most is None else ContinuationSide(prompts)
    return LanguagePairDataset(
        prompts,
        prompts.sizes,
        dictionary,
        target,
        None if target is None else target.sizes,
        None if target is None else dictionary,
        left_pad_source=False,
        left_pad_target=False,
        shuffle=shuffle,
    )


def check_room(dataset: LanguagePairDataset, split: str, places: int, least: int) -> None:
    """Refuse prompts, or lines, that the model is too short for.

    Args:
        dataset: see :func:`prompt_dataset`.
        places: most tokens that the model reads.
        least: fewest tokens that it writes behind a prompt.

    Raises:
        EsrlError: naming the first such line (counted from 1) and its length.
    """
    needed = {"prompt": dataset.src_sizes + least}
    if dataset.tgt is not None:
        needed["line"] = dataset.src_sizes + dataset.tgt_sizes - 1
    for what, sizes in needed.items():
        if sizes.max() > places:
            line = int((sizes > places).argmax())
            words = sizes[line] - (1 + least if what == "prompt" else 1)
            raise EsrlError(
                f"the {what} in line {line + 1} of {split} has {words} tokens, but the model reads "
                f"at most {places}, with the start symbol and what it writes: shorten or leave out "
                "such lines, or choose a model that reads more (fairseq's: --tokens-per-sample)"
            )


def check_references(dataset: LanguagePairDataset, split: str, never: set[int]) -> None:
    """Refuse references with words that the model gives no probability.

    Args:
        dataset: see :func:`prompt_dataset`.
        never: ids of these words.

    Raises:
        EsrlError: naming the first such line (counted from 1).
    """
    if dataset.tgt is None or not never:
        return
    for line in range(len(dataset.tgt)):
        if not never.isdisjoint(dataset.tgt[line].tolist()):
            raise EsrlError(
                f"the reference in line {line + 1} of {split} has a token that ends texts of this "
                "model, before its end: leave out such lines, or --prompt-tokens"
            )


class PromptTask(LanguageModelingTask):
    """fairseq's language modeling, on data sets of prompts.

    Each line is an input. Its prompt are its first ``--prompt-tokens`` words, or all of them.
    """

    @classmethod
    def setup_dictionary(cls, args: Any, **kwargs: Any) -> Any:
        path = os.path.join(utils.split_paths(args.data)[0], "dict.txt")
        if not os.path.exists(path):
            raise EsrlError(
                f"there is no dictionary {path}: binarize the prompts with fairseq-preprocess "
                "--only-source --srcdict, the dictionary that the model was trained with"
            )
        return super().setup_dictionary(args, **kwargs)

    @property
    def start(self) -> int:
        """Id of what the model reads first, as in fairseq's generation with language models."""
        dictionary = self.dictionary
        return dictionary.bos() if self.args.add_bos_token else dictionary.eos()

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        # fairseq's own asks for targets, which models with an encoder do not know.
        model = super(LanguageModelingTask, self).build_model(args, from_checkpoint)
        if not is_decoder_only(model):
            raise EsrlError(
                "--task esrl_language_modeling trains language models, which "
                f"{type(model).__name__} is not: choose an --arch such as transformer_lm, or "
                "--task esrl_translation"
            )
        self.places = int(model.max_positions())
        self.never = set(getattr(model, "never", ()))
        self.pretrained = getattr(model, "pretrained", "")
        self.word_decoder = getattr(model, "word_decoder", None)
        return model

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Prompts, and the rests of their lines as targets."""
        paths = utils.split_paths(self.args.data)
        prefix = os.path.join(paths[(epoch - 1) % len(paths)], split)
        lines = data_utils.load_indexed_dataset(
            prefix, self.dictionary, self.args.dataset_impl, combine=combine
        )
        if lines is None:
            raise EsrlError(
                f"there are no prompts {prefix}: make them with fairseq-preprocess --only-source"
            )
        shuffle = split == self.args.train_subset
        self.datasets[split] = prompt_dataset(
            lines, self.dictionary, self.args.prompt_tokens, self.start, shuffle
        )
