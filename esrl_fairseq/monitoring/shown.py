"""``--show-samples``: what a person looks at in each validation, a few inputs and their outputs."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np

from esrl_fairseq.compat import show_table
from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.data.lines import PLACES
from esrl_fairseq.rewards.given import named
from esrl_fairseq.rewards.scorer import Scorer

logger = logging.getLogger(__name__)

COLUMNS = ("input", "source", "reference", "output", "output_reward", "sample", "sample_reward")


class Shown:
    """The inputs of a validation that are shown: those with the smallest hashes of their ids.

    So they are the same at each validation, however the data are divided into batches.

    Args:
        number: how many; 0: none.
    """

    def __init__(self, number: int):
        self.number = number
        self.open = False  # whether the subset is one that is shown
        self.limit: int | None = None  # hashes of a whole validation were up to it
        self.examples: dict[int, dict[str, Any]] = {}  # by hash

    def begin(self) -> None:
        """The first subset of a validation follows."""
        if self.number:
            self.open, self.examples = True, {}

    def wanted(self, ids: list[int]) -> list[int]:
        """Places, in a batch, of the inputs that are among the smallest hashes so far."""
        hashes = [hash_of(i) for i in ids]
        smallest = sorted({*self.examples, *hashes})[: self.number]
        limit = smallest[-1] if self.limit is None else self.limit
        return [place for place, found in enumerate(hashes) if found <= limit]

    def see(
        self, model: Any, sample: dict[str, Any], task: Any, scorer: Scorer, best: Any, seed: int
    ) -> None:
        """Look at a batch of the validation.

        Args:
            best: tokens of each input's output, as it is validated.
            seed: of the samples.
        """
        ids = host_ids(sample).tolist() if self.open else []
        places = self.wanted(ids) if ids else []
        if not places:
            return
        one_each = np.zeros(len(ids), dtype=np.int64)
        one_each[places] = 1
        ones = np.ones(len(ids), dtype=np.float32)
        drawn = task.build_sampler(model).sample_rows(sample, one_each, ones, seed)
        rows = [best[place] for place in places] + drawn.tokens.tolist()
        found = examples(scorer, sample, rows, places)
        self.examples.update(zip((hash_of(ids[place]) for place in places), found))
        for late in sorted(self.examples)[self.number :]:
            del self.examples[late]

    def end(self, cfg: Any, update: int) -> list[dict[str, Any]]:
        """The subset is over: show what was found, and give it back."""
        if not self.open:
            return []
        self.open = False
        if self.examples:
            self.limit = max(self.examples)
        found = [self.examples[key] for key in sorted(self.examples)]
        for example in found:
            logger.info(lines(example, update))
        rows = [[cell(example, column) for column in COLUMNS] for example in found]
        show_table(cfg.common, "samples", COLUMNS, rows, update)
        return found


def hash_of(number: int) -> int:
    """The same on every machine, and unlike its neighbours'."""
    digest = hashlib.blake2b(str(number).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def examples(
    scorer: Scorer, sample: dict[str, Any], rows: Any, places: list[int]
) -> list[dict[str, Any]]:
    """What is shown of the inputs at some places of a batch.

    Args:
        rows: tokens of their outputs, and then of their samples.
    """
    row_input = [*places, *places]
    texts = scorer.hypotheses(scorer.with_prompts(sample, rows, row_input))
    references = scorer.references(sample)
    answer = scorer.ask(sample, texts, references, row_input)
    total = answer.rewards.tolist()
    parts = {
        name: values.tolist() for name, values in answer.parts.items() if np.isfinite(values).all()
    }
    names = sample.get(PLACES) or host_ids(sample).tolist()
    sources = scorer.sources(sample)
    found = []
    for number, place in enumerate(places):
        example: dict[str, Any] = {
            "input": named(names[place]),
            "source": sources[place],
            "reference": references[place][0] if references else "",
        }
        for name, row in (("output", number), ("sample", number + len(places))):
            example[name] = {
                "text": texts[row],
                "reward": total[row],
                "parts": {part: values[row] for part, values in parts.items()},
            }
        found.append(example)
    return found


def lines(example: dict[str, Any], update: int) -> str:
    """A few lines for a person."""
    told = [
        f"{example['input']} after update {update}",
        f"  source:    {example['source']}",
        f"  reference: {example['reference']}",
    ]
    for name in ("output", "sample"):
        label = f"{name}:".ljust(10)
        told.append(f"  {label} {example[name]['text']}  [{reward_of(example[name])}]")
    return "\n".join(told)


def reward_of(text: dict[str, Any]) -> str:
    """The reward of a text, and of its parts."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in text["parts"].items())
    return f"reward {text['reward']:.4f}" + (f": {parts}" if parts else "")


def cell(example: dict[str, Any], column: str) -> str:
    """What a table has of an example."""
    if column.endswith("_reward"):
        return reward_of(example[column.removesuffix("_reward")]).removeprefix("reward ")
    found = example[column]
    return str(found if isinstance(found, str) else found["text"])
