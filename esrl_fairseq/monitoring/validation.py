"""What validation measures: reward of the best hypotheses, likelihood of the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from esrl_fairseq.core.sequences import given_rows
from esrl_fairseq.monitoring.corpus import reward_log
from esrl_fairseq.monitoring.parts import part_log
from esrl_fairseq.rescoring.rescoring import rescore, unwrap
from esrl_fairseq.rewards.asking import named
from esrl_fairseq.rewards.scorer import Scorer
from esrl_fairseq.sampling.conditioning import is_decoder_only, reference_tokens

VALID_SEED = 1
"""Of validation's samples, always the same, so that validations differ by the model alone."""


@torch.no_grad()
def validate(
    model: Any, sample: dict[str, Any], task: Any, scorer: Scorer, beam: int
) -> tuple[Tensor, int, dict[str, Any]]:
    """Loss, its size and what to log of a batch; changes no state but the task's monitor.

    The loss is that of the references' likelihood, or minus the reward where there are none.

    Args:
        beam: of the search for hypotheses; 0: one sample of each input.
    """
    model = unwrap(model)
    # First, because a search among NaN fails in words of its own.
    likelihood = None if sample["target"] is None else nll(model, sample, task.target_dictionary)
    if likelihood is not None and not likelihood.isfinite():
        task.refuse_numbers(
            "the model's log-probabilities of validation references are not finite (NaN or "
            f"infinity) in the batch with {named(int(sample['id'][0]))}"
        )
    best = hypotheses(model, sample, task, beam)
    scored = scorer.score(sample, best, range(len(best)))
    task.shown.see(model, sample, task, scorer, best, VALID_SEED)
    reward = float(scored.rewards.sum())
    if not scorer.reward.counted:  # the score of a corpus is known at the end
        task.monitor.add_validation(reward, len(best))
    log = {
        "nsentences": len(best),
        "ntokens": sample["ntokens"],
        **reward_log(scored),
        **part_log(scored.parts, np.ones(len(best), np.int64), without=list(scored.counts)),
        "valid_words": scored.words,
        "valid_reference_words": scored.reference_words,
    }
    if likelihood is None:
        loss, size = torch.tensor(-reward), len(best)
    else:
        loss, size = likelihood, sample["ntokens"]
        log["reference_tokens"] = size
    return loss, size, {**log, "loss": loss, "sample_size": size}


def hypotheses(model: Any, sample: dict[str, Any], task: Any, beam: int) -> list[list[int]]:
    """Tokens of each input's hypothesis."""
    if beam:
        return task.best_hypotheses(model, sample, beam)
    ones = np.ones(len(sample["id"]), dtype=np.float32)
    sampler = task.build_sampler(model)
    return sampler.sample_rows(sample, ones.astype(int), ones, VALID_SEED).tokens.tolist()


def nll(model: Any, sample: dict[str, Any], dictionary: Any) -> Tensor:
    """Negative log-likelihood of the references, summed, in nats."""
    pad, eos = dictionary.pad(), dictionary.eos()
    if is_decoder_only(model):
        rows = given_rows(reference_tokens(sample, pad, eos), pad)
        return -rescore(model, sample["net_input"], rows, pad, eos).log_probs.sum()
    lprobs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    return torch.nn.functional.nll_loss(
        lprobs.float().flatten(0, 1), sample["target"].flatten(), ignore_index=pad, reduction="sum"
    )
