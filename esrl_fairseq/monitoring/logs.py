"""What is logged (docs/method.md 6): sums per batch here, means per log line in :func:`reduce`."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.utils import get_perplexity
from torch import Tensor

from esrl_fairseq.core.losses import segment_sum
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.monitoring.parts import part_log, reduce_parts
from esrl_fairseq.state.samples import Samples

HISTOGRAM_BINS = 4
"""Samples per input are counted in quarters of K (and skipped inputs apart)."""
BRANCHES = ("mrt", "reinforce", "rloo", "ppo")
"""Losses that an input can get; ``fused`` chooses between the first two."""


class Clock:
    """Seconds by stage. A GPU notes them in its own queue, and is waited for only when they are
    read; so a stage pays for its own work, and no stage waits for another."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[Any, Any]] = {}
        self._stage = ""

    def __call__(self, stage: str) -> Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: Any) -> None:
        self._times[self._stage] = self._start, self._now()

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage, 0 for those that were not run."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = dict.fromkeys(("stage_one", "reward", "stage_two"), 0.0)
        for stage, (start, end) in self._times.items():
            on_device = not isinstance(start, float)
            seconds[stage] = start.elapsed_time(end) / 1e3 if on_device else end - start
        return seconds

    @staticmethod
    def _now() -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory so far, in GB: allocated on the GPU that trains, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes except on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def training_log(
    options: Any,
    objective: Any,
    samples: Samples,
    losses: Tensor,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Sums over one batch; every rank has the same keys, so they can be added up.

    Args:
        options: of the task, for the budget.
        objective: the criterion's, with its options and the sizes of rows.
        losses: ``[inputs]``.
        seconds: by stage.
    """
    plan, rows, scored, drawn = samples.plan, samples.rows, samples.scored, samples.drawn
    inputs = samples.inputs
    draws = rows.multiplicity.numpy()
    known = ~np.isnan(plan.capability)
    log: dict[str, Any] = {
        "batches": 1,
        "draws": int(draws.sum()),
        "rows": len(rows),
        "reward": float((scored.rewards * draws).sum()),
        "reward_squared": float((scored.rewards.astype(np.float64) ** 2 * draws).sum()),
        "baseline": samples.baseline,
        "nll_references": nll_references(samples),
        "budget": inputs * (options.num_samples - options.min_samples),
        "optional": int(plan.counts.sum()) - inputs * options.min_samples,
        "temperature": float(plan.temperature.sum()),
        "known": int(known.sum()),
        "capability": float(plan.capability[known].sum()),
        "entropy": float(drawn.entropy.sum()),
        "sampled_tokens": int(rows.lengths.sum()),
        "scored_tokens": int(drawn.lengths.sum()),
        **selection_log(samples, objective),
        "empty": scored.empty,
        "truncated": int(rows.truncated.sum()),
        "words": scored.words,
        "reference_words": scored.reference_words,
        "peak_gb": peak_memory_gb(samples.batch["id"].device),
        **part_log(scored.parts, draws),
    }
    for branch, taken in branches(objective.cfg.objective, rows, inputs).items():
        log[f"loss_{branch}"] = float(losses[taken].sum())
        log[f"inputs_{branch}"] = int(taken.sum())
    log.update({f"seconds_{stage}": value for stage, value in seconds.items()})
    quarter = np.ceil(plan.counts / options.num_samples * HISTOGRAM_BINS).astype(int)
    counts = np.bincount(quarter, minlength=HISTOGRAM_BINS + 1)
    log.update({f"quarter_{i}": int(count) for i, count in enumerate(counts)})
    return log


def selection_log(samples: Samples, objective: Any) -> dict[str, Any]:
    """What of the rows, their tokens and their squared coefficients the gradient was made of."""
    assert samples.loss is not None
    rows, loss = samples.rows, samples.loss
    used = loss.chosen[loss.weights != 0]  # a row of weight 0 is there for want of any other
    squares = objective.sizes(loss.coefficients, samples.drawn).double() ** 2
    learns = bool(squares.sum() > 0)
    return {
        "all_tokens": int(rows.lengths.sum()),
        "chosen_rows": len(used),
        "chosen_tokens": int(rows.lengths[used].sum()),
        "chosen_scored": int(samples.drawn.lengths[loss.chosen].sum()),
        # A share of one batch: losses of different batches can have different scales.
        "kept_squares": float(squares[used].sum() / squares.sum()) if learns else 0.0,
        "batches_with_gradient": int(learns),
    }


def stages_apart(samples: Samples) -> float:
    """How far the stages' log-probabilities of the chosen rows are apart, summed."""
    assert samples.loss is not None and samples.scores is not None
    given = samples.drawn.log_probs[samples.loss.chosen]
    return float((samples.scores.log_probs - given).abs().sum())


def nll_references(samples: Samples) -> float:
    """Of the references, summed; 0 where the loss does not need it."""
    return 0.0 if samples.references is None else -float(samples.references.log_probs.sum())


def branches(objective: str, rows: Rows, inputs: int) -> dict[str, Tensor]:
    """Which inputs get which loss: bool [inputs] for each of :data:`BRANCHES`."""
    if objective == "fused":
        distinct = segment_sum(torch.ones_like(rows.input_index), rows.input_index, inputs)
        taken = {"mrt": distinct >= 2, "reinforce": distinct < 2}
    else:
        taken = {objective: rows.input_index.new_ones(inputs, dtype=torch.bool)}
    none = rows.input_index.new_zeros(inputs, dtype=torch.bool)
    return {branch: taken.get(branch, none) for branch in BRANCHES}


def reduce(logging_outputs: list[dict[str, Any]]) -> None:
    """Log means over all batches and ranks, with the weights that make them add up later."""
    if not logging_outputs:
        return
    total = {key: _sum(logging_outputs, key) for key in logging_outputs[0]}
    reduce_parts(total)
    if "valid_words" in total:
        _reduce_validation(total)
    elif "draws" in total:
        _reduce_training(total)


def _sum(logging_outputs: list[dict[str, Any]], key: str) -> float:
    return float(sum(log.get(key, 0) for log in logging_outputs))


def _mean(total: dict[str, float], name: str, key: str, by: str, digits: int = 3) -> None:
    if total[by] > 0:
        metrics.log_scalar(name, total[key] / total[by], total[by], round=digits)


def _reduce_validation(total: dict[str, float]) -> None:
    if "reference_tokens" in total:
        tokens = total["reference_tokens"]
        metrics.log_scalar("loss", total["loss"] / tokens / math.log(2), tokens, round=3)
        metrics.log_derived("ppl", lambda meters: get_perplexity(meters["loss"].avg))
    else:  # fairseq would log -1 in its place, and keep the first checkpoint as the best
        _mean(total, "loss", "loss", "nsentences", 4)
    if "valid_reward" in total:  # otherwise see monitoring/corpus.py
        _mean(total, "reward", "valid_reward", "nsentences", 4)
    _mean(total, "length_ratio", "valid_words", "valid_reference_words")


def _reduce_training(total: dict[str, float]) -> None:
    _mean(total, "loss", "loss", "nsentences", 6)
    for branch in BRANCHES:
        _mean(total, f"loss_{branch}", f"loss_{branch}", f"inputs_{branch}", 6)
    _mean(total, "share_mrt", "inputs_mrt", "nsentences")
    if "ppo_pass" in total:
        _mean(total, "ppo_pass", "ppo_pass", "batches", 1)
        for name in ("clipped", "ratio", "kl"):
            _mean(total, f"ppo_{name}", f"ppo_{name}", "ppo_actions", 4)
    if total["nll_references"]:
        _mean(total, "nll_references", "nll_references", "nsentences")
    _mean(total, "reward", "reward", "draws", 4)
    _mean(total, "_reward_squared", "reward_squared", "draws", 8)
    metrics.log_derived(
        "reward_std",
        lambda m: round(max(m["_reward_squared"].avg - m["reward"].avg ** 2, 0) ** 0.5, 4),
    )
    _mean(total, "baseline", "baseline", "batches", 4)
    if "kl" in total:
        _mean(total, "kl", "kl", "draws", 4)
        _mean(total, "kl_weight", "kl_weight", "batches", 6)
    _mean(total, "samples", "draws", "nsentences", 2)
    for i in range(HISTOGRAM_BINS + 1):
        _mean(total, f"_quarter_{i}", f"quarter_{i}", "nsentences")
    metrics.log_derived("samples_hist", _histogram)
    total["eliminated"] = total["budget"] - total["optional"]
    _mean(total, "eliminated", "eliminated", "budget")
    _mean(total, "temperature", "temperature", "nsentences")
    _mean(total, "capability", "capability", "known")
    _mean(total, "entropy", "entropy", "scored_tokens")
    _mean(total, "unique", "rows", "draws")
    _mean(total, "empty", "empty", "rows")
    _mean(total, "truncated", "truncated", "rows")
    _mean(total, "length_ratio", "words", "reference_words")
    _mean(total, "sampled_tokens", "sampled_tokens", "batches", 0)
    _mean(total, "chosen_rows", "chosen_rows", "rows")
    _mean(total, "chosen_tokens", "chosen_tokens", "all_tokens")
    _mean(total, "kept_squares", "kept_squares", "batches_with_gradient")
    if "stages_apart" in total:
        _mean(total, "stages_apart", "stages_apart", "chosen_scored", 7)
    for stage in ("stage_one", "reward", "stage_two"):
        _mean(total, f"seconds_{stage}", f"seconds_{stage}", "batches")
    _mean(total, "peak_gb", "peak_gb", "batches", 2)


def _histogram(meters: Any) -> str:
    """Share of inputs with no sample, and with up to a quarter, half, … of K, in percent."""
    shares = [meters[f"_quarter_{i}"].avg for i in range(HISTOGRAM_BINS + 1)]
    return "/".join(f"{100 * share:.0f}" for share in shares)
