"""Prompts for language models: the beginnings of a data set's lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset

from esrl_fairseq.data.lines import places
from esrl_fairseq.errors import EsrlError


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
        self.stored = lines, 0, self.kept
        """What stands in the data: lines, the first word's place in each, words."""

    def __getitem__(self, index: int) -> torch.Tensor:
        line = self.lines[index]
        return torch.cat([line.new_tensor([self.start]), line[: self.kept[index]]])

    def __len__(self) -> int:
        return len(self.lines)


class ContinuationSide:
    """The rest of each line, with its EOS."""

    supports_prefetch = False
    nothing = "ends with its prompt"  # what messages say of an empty one

    def __init__(self, prompts: PromptSide):
        self.lines, self.kept = prompts.lines, prompts.kept
        self.sizes = np.asarray(self.lines.sizes) - self.kept
        self.stored = self.lines, self.kept, self.sizes  # see PromptSide

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


def check_room(dataset: LanguagePairDataset, split: str, most: int, least: int) -> None:
    """Refuse prompts, or lines, that the model is too short for.

    Args:
        dataset: see :func:`prompt_dataset`.
        split: see :func:`~esrl_fairseq.data.lines.split_name`.
        most: tokens that the model reads.
        least: fewest tokens that it writes behind a prompt.

    Raises:
        EsrlError: naming the first such line and its length.
    """
    needed = {"prompt": dataset.src_sizes + least}
    if dataset.tgt is not None:
        needed["line"] = dataset.src_sizes + dataset.tgt_sizes - 1
    for what, sizes in needed.items():
        if sizes.max() > most:
            line = int((sizes > most).argmax())
            words = sizes[line] - (1 + least if what == "prompt" else 1)
            raise EsrlError(
                f"the {what} in {places(dataset.src, [line], split)[0]} has {words} tokens, but "
                f"the model reads at most {most}, with the start symbol and what it writes: "
                "shorten or leave out such lines, or choose a model that reads more (fairseq's: "
                "--tokens-per-sample)"
            )


def check_references(dataset: LanguagePairDataset, split: str, never: set[int]) -> None:
    """Refuse references with words that the model gives no probability.

    Args:
        dataset: see :func:`prompt_dataset`.
        never: ids of these words.

    Raises:
        EsrlError: naming the first such line.
    """
    if dataset.tgt is None or not never:
        return
    for line in range(len(dataset.tgt)):
        if not never.isdisjoint(dataset.tgt[line].tolist()):
            raise EsrlError(
                f"the reference in {places(dataset.src, [line], split)[0]} has a token that ends "
                "texts of this model, before its end: leave out such lines, or --prompt-tokens"
            )
