"""From a batch's token ids to rewards (docs/method.md 3)."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq.data import encoders
from numpy.typing import NDArray

from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.data.lines import PLACES
from esrl_fairseq.data.references import FURTHER, encode
from esrl_fairseq.data.subwords import check_joining, dictionary_words
from esrl_fairseq.data.text import (
    UNK_IN_HYPOTHESIS,
    UNK_IN_REFERENCE,
    Decode,
    hypothesis_text,
    reference_text,
    source_text,
)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import Reward, build_reward, command_line_options
from esrl_fairseq.rewards.answers import Answer
from esrl_fairseq.rewards.asking import ask_rows
from esrl_fairseq.rewards.build import leaf_names
from esrl_fairseq.rewards.watch import Watch
from esrl_fairseq.rewards.workers import Workers, build_workers

logger = logging.getLogger(__name__)

LANGUAGE = "language-gate"
"""The reward that asks for the language of the outputs, which the task knows."""


@dataclass
class Scored:
    """Rewards of a batch's rows, and what the logs need of their texts.

    Attributes:
        rewards: float32 ``[rows]``.
        empty: number of rows without any word.
        words: words of all rows, without their prompts.
        reference_words: words of each row's first reference, likewise, summed.
        rest, counts: of rewards that follow the counts of a corpus, see :class:`Answer`; not kept
            for later updates.
        parts: of each reward that a sum or a product is made of, see :class:`Answer`.
    """

    rewards: NDArray[np.float32]
    empty: int
    words: int
    reference_words: int
    rest: NDArray[np.float32] | None = None
    counts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    parts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


class Scorer:
    """Turns ids into the text that ``fairseq-generate`` would print, and texts into rewards.

    Args:
        reward: what to score with.
        task: a fairseq task with source and target dictionary; where its ``word_decoder`` is not
            None, words are turned into text by that first.
        post_process: as ``--post-process`` of ``fairseq-generate``; ``None`` leaves BPE joints in.
        detokenizer: a fairseq tokenizer (``moses``, ``space``, …) that undoes tokenisation, or
            ``None`` for the tokenised text.
        first_reference: compare with the first reference only, the target side.
        whole_text: hypotheses and references are continuations of their sources, and are scored
            with these before them.
        timeout: seconds that the reward has for a batch; 0 for ever.
        workers: processes that are asked instead of `reward`, where it allows that.
    """

    def __init__(
        self,
        reward: Reward,
        task: Any,
        post_process: str | None,
        detokenizer: str | None,
        first_reference: bool = False,
        whole_text: bool = False,
        timeout: float = 0,
        workers: Workers | None = None,
    ):
        self.reward, self.workers = reward, workers
        self.watch = Watch(timeout)
        self.first_reference = first_reference
        self.whole_text = whole_text
        self.src_dict = task.source_dictionary
        self.tgt_dict = task.target_dictionary
        self.post_process = post_process
        self.strip_ids = {self.tgt_dict.eos(), getattr(task, "eos", self.tgt_dict.eos())}
        self.source_strip_ids = {getattr(task, "source_eos", self.src_dict.eos())}
        to_text = getattr(task, "word_decoder", None)
        of_source = getattr(task, "source_word_decoder", None)
        self.source_decode = self.target_decode = None if to_text is None else to_text()
        if of_source is not None:
            self.source_decode = of_source()
        if detokenizer is not None:
            source, target = task.languages
            self.source_decode = _chain(self.source_decode, build_detokenizer(detokenizer, source))
            self.target_decode = _chain(self.target_decode, build_detokenizer(detokenizer, target))

    def hypotheses(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Texts of rows of token ids, padding allowed."""
        return [
            hypothesis_text(
                row,
                self.tgt_dict,
                self.post_process,
                self.strip_ids,
                self.target_decode,
                UNK_IN_HYPOTHESIS,
            )
            for row in tokens
        ]

    def references(self, sample: dict[str, Any]) -> list[list[str]] | None:
        """One list of references an input, ``None`` for data without a target side.

        The first one is the target side's.
        """
        if sample.get("target") is None:
            return None
        targets = sample["target"].tolist()
        found = [
            [self.reference(row)] for row in self.with_prompts(sample, targets, range(len(targets)))
        ]
        if not self.first_reference:
            for references, lines in zip(found, sample.get(FURTHER, [])):
                references += [self.reference(encode(line, self.tgt_dict)) for line in lines]
        return found

    def reference(self, tokens: Any) -> str:
        """Text of the token ids of one reference, padding allowed."""
        return reference_text(
            tokens,
            self.tgt_dict,
            self.post_process,
            self.strip_ids,
            self.target_decode,
            UNK_IN_REFERENCE,
        )

    def with_prompts(
        self, sample: dict[str, Any], tokens: Sequence[Sequence[int]], row_input: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """The ids of rows, behind those of their sources where the whole text is scored."""
        if not self.whole_text:
            return tokens
        prompts = sample["net_input"]["src_tokens"].tolist()
        return [[*prompts[i], *row] for i, row in zip(row_input, tokens)]

    def sources(self, sample: dict[str, Any]) -> list[str]:
        """Texts of a batch's inputs."""
        return [self.source(row) for row in sample["net_input"]["src_tokens"].tolist()]

    def source(self, tokens: Any) -> str:
        """Text of the token ids of one input, padding allowed."""
        return source_text(
            tokens, self.src_dict, self.post_process, self.source_decode, self.source_strip_ids
        )

    def ask(
        self,
        sample: dict[str, Any],
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]] | None,
        row_input: Sequence[int],
    ) -> Answer:
        """What the reward says of texts, [rows]."""
        return ask_rows(
            self.reward,
            self.sources(sample),
            hypotheses,
            references,
            row_input,
            sample.get(PLACES) or host_ids(sample).tolist(),
            torch.initial_seed(),  # fairseq's, of the update
            self.watch,
            self.workers,
        )

    def score(
        self, sample: dict[str, Any], tokens: Sequence[Sequence[int]], row_input: Sequence[int]
    ) -> Scored:
        """Score rows of a batch.

        Args:
            sample: a fairseq batch.
            tokens: ``[rows]`` lists of ids.
            row_input: ``[rows]`` positions of the rows' inputs in the batch.

        Raises:
            EsrlError: for a missing reference or a bad reward, naming the line of the data.
        """
        hypotheses = self.hypotheses(self.with_prompts(sample, tokens, row_input))
        references = self.references(sample)
        answer = self.ask(sample, hypotheses, references, row_input)
        firsts = [texts[0] for texts in references or []]
        if self.whole_text:  # counted are the continuations
            hypotheses = self.hypotheses(tokens)
            firsts = [self.reference(row) for row in sample["target"].tolist()] if firsts else []
        lengths = [len(text.split()) for text in hypotheses]
        reference_lengths = [len(text.split()) for text in firsts]
        return Scored(
            rewards=answer.rewards,
            empty=lengths.count(0),
            words=sum(lengths),
            reference_words=sum(reference_lengths[i] for i in row_input) if firsts else 0,
            rest=answer.rest,
            counts=answer.counts,
            parts=answer.parts,
        )


def build_scorer(cfg: Any, task: Any, name: str, first_reference: bool = False) -> Scorer:
    """The scorer of the reward `name` with the options of the criterion, `cfg`.

    Raises:
        EsrlError: an option cannot be read, or what the reward needs is not there.
    """
    options = command_line_options(
        cfg.reward, cfg.reward_options, cfg.reward_model, cfg.reward_device
    )
    bleu = {"tokenize": cfg.reward_tokenize, "smooth_method": cfg.reward_smoothing}
    corpus_bleu = {"tokenize": cfg.reward_tokenize}
    options["bleu"] = {**bleu, **options.get("bleu", {})}
    options["corpus-bleu"] = {**corpus_bleu, **options.get("corpus-bleu", {})}
    if LANGUAGE in leaf_names(name):
        options[LANGUAGE] = {"language": task.languages[1], **options.get(LANGUAGE, {})}
    reward = build_reward(name, part_options=options)
    if not first_reference and getattr(task, "word_decoder", None) is None:
        check_subwords(cfg.reward_post_process, task, reward.needs_sources)
    return Scorer(
        reward,
        task,
        None if cfg.reward_post_process == "none" else cfg.reward_post_process,
        cfg.reward_detokenizer,
        first_reference,
        whole_text=task.reward_text == "whole",
        timeout=cfg.reward_timeout,
        workers=None if first_reference else build_workers(cfg.reward_workers, reward, options),
    )


def check_subwords(post_process: str, task: Any, sources_matter: bool) -> None:
    """Refuse a ``--reward-post-process`` that does not join the sub-words of the task's words.

    Args:
        sources_matter: whether the reward needs sources; otherwise theirs are warned of.

    Raises:
        EsrlError: naming the value that does.
    """
    source, target = task.source_dictionary, task.target_dictionary
    one = source.symbols == target.symbols
    check_joining(
        post_process, dictionary_words(target), f"the {'' if one else 'target '}dictionary"
    )
    if not one:
        check_joining(
            post_process,
            dictionary_words(source),
            "the source dictionary",
            "split the words of both sides in the same way",  # the value is right for the outputs
            None if sources_matter else logger.warning,
        )


def _chain(first: Decode | None, then: Decode) -> Decode:
    return then if first is None else lambda words: then(first(words))


def build_detokenizer(name: str, lang: str) -> Decode:
    """The ``decode`` of fairseq's tokenizer ``name`` for ``lang``.

    Raises:
        EsrlError: fairseq knows no such tokenizer.
    """
    if name not in encoders.TOKENIZER_REGISTRY:
        known = sorted(encoders.TOKENIZER_REGISTRY)
        raise EsrlError(
            f"unknown --reward-detokenizer {name!r}{did_you_mean(name, known)}: choose one of "
            f"{', '.join(known)}"
        )
    options = Namespace(tokenizer=name, source_lang=lang, target_lang=lang)
    return encoders.build_tokenizer(options).decode
