"""What the start model and the best checkpoint of a run make of a data set."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.dataclass.configs import CheckpointConfig, GenerationConfig

from esrl_fairseq.checkpoints.reading import check_file
from esrl_fairseq.data.lines import PLACES
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.report.reading import Recorded
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.rewards.given import named
from esrl_fairseq.rewards.scorer import Scorer
from esrl_fairseq.sampling.conditioning import is_decoder_only
from esrl_fairseq.sampling_task import SamplingTask
from esrl_fairseq.task import attach_sampling

logger = logging.getLogger(__name__)

ENOUGH_LINES = 100_000
"""Of the training data, evenly spaced, for how frequent words are."""


@dataclass
class Translations:
    """A data set and two models' outputs, in the order of its lines, as the reward sees texts.

    Attributes:
        start_file, best_file: the checkpoints.
        names: of the lines.
        references: [lines] lists of texts.
        frequency: of the words in the training data's targets; empty where these are not known.
        tokenize: of BLEU, ``--reward-tokenize``.
        detokenized: whether ``--reward-detokenizer`` was given.
    """

    start_file: str
    best_file: str
    names: list[str]
    sources: list[str]
    references: list[list[str]]
    start: list[str]
    best: list[str]
    frequency: Counter[str]
    tokenize: str = "13a"
    detokenized: bool = True


def translate(run: Recorded, given: Any) -> Translations:
    """Translate with both models, by beam search, as ``fairseq-generate`` does.

    Args:
        given: options of the command.

    Raises:
        EsrlError: a checkpoint or the data are missing or do not fit.
    """
    best_file = os.path.join(run.folder, "checkpoint_best.pt")
    check_file(best_file, "the best checkpoint", "train with validation, and without --no-save")
    changed = {"data": given.data} if given.data else {}
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([best_file], changed)
    start_file = given.start or start_of(run, cfg)
    check_file(start_file, "the start model", "say with --start where it is now")
    if not isinstance(task, SamplingTask):
        attach_sampling(task)
    task.load_dataset(given.subset)
    scorer = texts_of(task, cfg)
    best = dict(outputs(models[0], task, cfg, scorer, given))
    logger.info("%s: %d lines translated", best_file, len(best))
    models, _ = checkpoint_utils.load_model_ensemble([start_file], task=task)
    start = dict(outputs(models[0], task, cfg, scorer, given))
    logger.info("%s: %d lines translated", start_file, len(start))
    both = [best[i] for i in sorted(best) if i in start]
    if not both or not all(line.references for line in both):
        raise EsrlError(
            f"{given.subset} of {cfg.task.data} has no references to compare with: give another "
            "--subset, or --data"
        )
    return Translations(
        start_file,
        best_file,
        [line.name for line in both],
        [line.source for line in both],
        [line.references for line in both],
        [start[i].output for i in sorted(best) if i in start],
        [line.output for line in both],
        frequencies(task, cfg, scorer),
        cfg.criterion.reward_tokenize,
        cfg.criterion.reward_detokenizer is not None,
    )


@dataclass
class Line:
    """A line of the data, and what a model made of it."""

    name: str
    source: str
    references: list[str]
    output: str


def start_of(run: Recorded, cfg: Any) -> str:
    """The checkpoint that a run started from: of its record, or of its best one's configuration.

    Raises:
        EsrlError: it started from none.
    """
    recorded = run.begin.get("start", {}).get("path")
    restored = cfg.checkpoint.restore_file
    if restored == CheckpointConfig.restore_file:
        restored = ""
    found = recorded or cfg.checkpoint.finetune_from_model or restored
    if not found:
        raise EsrlError(
            f"the run of {run.folder} started from no checkpoint that its best one could be "
            "compared with: give one with --start"
        )
    return str(found)


def texts_of(task: Any, cfg: Any) -> Scorer:
    """What turns the task's ids into texts as the run's reward saw them.

    Raises:
        EsrlError: the checkpoint is of another criterion.
    """
    options = cfg.criterion
    if not hasattr(options, "reward_post_process"):
        raise EsrlError(
            f"checkpoint_best.pt was trained with the criterion {options._name}: --evaluate is for "
            "runs of --criterion esrl"
        )
    joined = None if options.reward_post_process == "none" else options.reward_post_process
    # It is asked for texts alone; the run's own reward may be a large model.
    reward = build_reward("chrf")
    return Scorer(reward, task, joined, options.reward_detokenizer)


@torch.no_grad()
def outputs(
    model: Any, task: Any, cfg: Any, scorer: Scorer, given: Any
) -> Iterator[tuple[int, Line]]:
    """Each line's id, and what beam search makes of it."""
    dataset = task.dataset(given.subset)
    cuda = torch.cuda.is_available() and not given.cpu
    model = model.cuda() if cuda else model
    model.eval()
    model.prepare_for_inference_(cfg)
    task.sampler = None  # of another model
    batches = task.get_batch_iterator(
        dataset=dataset,
        max_tokens=given.max_tokens,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=True,  # it warns of those
        required_batch_size_multiple=1,
    ).next_epoch_itr(shuffle=False)
    for sample in batches:
        sample = utils.move_to_cuda(sample) if cuda else sample
        tokens = best_of(model, task, sample, given.beam)
        texts, references = scorer.hypotheses(tokens), scorer.references(sample)
        sources = scorer.sources(sample)
        ids = sample["id"].tolist()
        for place, number in enumerate(ids):
            name = (sample.get(PLACES) or ids)[place]
            own = [] if references is None else references[place]
            yield number, Line(named(name), sources[place], own, texts[place])


def best_of(model: Any, task: Any, sample: Any, beam: int) -> list[list[int]]:
    """Tokens of the best hypothesis of each input of a batch."""
    if is_decoder_only(model):  # fairseq's generation would continue whole lines
        found: list[list[int]] = task.best_hypotheses(model, sample, beam)
        return found
    generation = GenerationConfig(beam=beam)
    generator = task.build_generator([model], generation)
    hypotheses = task.inference_step(generator, [model], sample)
    return [several[0]["tokens"].tolist() for several in hypotheses]


def frequencies(task: Any, cfg: Any, scorer: Scorer) -> Counter[str]:
    """How often words come in the training data's targets, or in a part of them."""
    counted: Counter[str] = Counter()
    try:
        task.load_dataset(cfg.dataset.train_subset)
    except (FileNotFoundError, SystemExit) as error:
        logger.warning("words are not counted, since the training data are not there (%s)", error)
        return counted
    lines: Sequence[Any] = getattr(task.dataset(cfg.dataset.train_subset), "tgt", None) or ()
    for place in range(0, len(lines), -(-len(lines) // ENOUGH_LINES) or 1):
        counted.update(scorer.reference(lines[place].tolist()).split())
    return counted
