"""One update by each method: the real ESRL, and what it is compared with.

All share model, batch, reward, sample limits and optimizer; they differ in how they sample and how
they get log-probabilities with gradient. Dropout is off in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common
import torch
from fairseq import search
from fairseq.data import data_utils
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor
from workload import Workload

from esrl_fairseq.core.losses import mrt_loss
from esrl_fairseq.core.sequences import Rows, decoder_inputs
from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.monitoring.logs import Clock
from esrl_fairseq.sampling.conditioning import decoder_prefix

STAGES = ("stage_one", "reward", "stage_two", "backward", "step")


@dataclass
class Bench:
    """A workload with what an update needs beside it.

    Attributes:
        k: samples per input.
    """

    work: Workload
    criterion: EsrlCriterion
    optimizer: torch.optim.Optimizer
    k: int

    @property
    def pad(self) -> int:
        return self.work.task.target_dictionary.pad()

    @property
    def eos(self) -> int:
        return self.work.task.target_dictionary.eos()


def make_bench(work: Workload, k: int, sampler: str, max_sampled_tokens: int) -> Bench:
    """The real criterion, and an Adam that does its work with a learning rate of 0.

    So repeats and methods meet the same model.

    Args:
        sampler: how the standard methods draw a word: ``multinomial`` as published code does, or
            ``inverse_cdf``, so that they differ from ESRL in nothing but the graph.
    """
    work.task.options.num_samples = k
    criterion = work.criterion(max_sampled_tokens=max_sampled_tokens).train()
    if sampler == "multinomial":
        criterion.draw_word = _multinomial
    optimizer = torch.optim.Adam(work.model.parameters(), lr=0.0)
    return Bench(work, criterion, optimizer, k)


def _multinomial(logits: Tensor, temperature: Tensor, _: Tensor) -> Tensor:
    """As ``inverse_cdf_sample``, with torch's own random numbers."""
    weights = (logits.float() / temperature.unsqueeze(1)).softmax(1)
    return torch.multinomial(weights, 1).squeeze(1)


def run_update(bench: Bench, method: str, sample: dict[str, Any], seed: int) -> common.Row:
    """One update: seconds, seconds by stage, samples and sampled tokens."""
    torch.manual_seed(seed)
    clock = Clock()
    start = common.seconds_now(bench.work.device)
    loss, counts = METHODS[method](bench, sample, clock)
    with clock("backward"):
        loss.backward()
    with clock("step"):
        bench.optimizer.step()
        bench.optimizer.zero_grad()
        bench.work.task.rl.commit()
    seconds = common.seconds_now(bench.work.device) - start
    found = {**clock.seconds, **counts.pop("stages", {})}
    stages = {f"seconds_{stage}": found.get(stage, 0.0) for stage in STAGES}
    return {"seconds": seconds, **stages, **counts}


def two_stage(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """ESRL: the criterion as ``fairseq-train`` calls it."""
    return _criterion(bench, sample, clock, sampling_mode="two-stage", objective="fused")


def selected(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """The same with half as many samples again, learning from a fifth of their tokens."""
    bench.work.task.options.num_samples = round(1.5 * bench.k)
    options = {"rescored_share": 0.2, "selection": "top"}
    return _criterion(bench, sample, clock, sampling_mode="two-stage", objective="fused", **options)


def standard_kv(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """REINFORCE with the graph kept through autoregressive sampling, decoder states cached."""
    return _criterion(bench, sample, clock, sampling_mode="standard", objective="reinforce")


def standard_nokv(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """The same, but every step decodes the whole prefix again, as published code does."""
    return _criterion(bench, sample, clock, sampling_mode="standard-nocache", objective="reinforce")


def fairseq_mrt(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """MRT as in fairseq's old branch: sources repeated K times, softmax over all positions."""
    with clock("stage_one"):
        rows = _as_rows(bench, sample, _generate(bench, sample))
    with clock("reward"):
        rewards = _rewards(bench, sample, rows)
    with clock("stage_two"):
        net_input, model = sample["net_input"], bench.work.model.eval()
        prefix = decoder_prefix(model, net_input, bench.eos)[rows.input_index]
        output = model(
            src_tokens=net_input["src_tokens"][rows.input_index],
            src_lengths=net_input["src_lengths"][rows.input_index],
            prev_output_tokens=decoder_inputs(rows.tokens, rows.lengths, prefix, bench.pad),
        )
        words = model.get_normalized_probs(output, log_probs=True)
        chosen = words.gather(2, rows.tokens.unsqueeze(2)).squeeze(2)
        log_probs = chosen.masked_fill(~rows.scored(), 0).float().sum(1)
        inputs, alpha = len(sample["id"]), bench.criterion.objective.alpha
        loss = mrt_loss(log_probs, rewards, rows.input_index, inputs, alpha).sum()
    return loss, _counts(rows)


METHODS: dict[str, Callable[[Bench, dict[str, Any], Clock], tuple[Tensor, common.Row]]] = {
    "two_stage": two_stage,
    "selected": selected,
    "standard_kv": standard_kv,
    "standard_nokv": standard_nokv,
    "fairseq_mrt": fairseq_mrt,
}


def _criterion(
    bench: Bench, sample: dict[str, Any], clock: Clock, **options: Any
) -> tuple[Tensor, common.Row]:
    """The criterion with these options, as ``fairseq-train`` calls it."""
    for name, value in options.items():
        setattr(bench.criterion.cfg, name, value)
    bench.work.model.train()
    loss, _, log = bench.criterion(bench.work.model, sample)
    stages = {stage: log[f"seconds_{stage}"] for stage in STAGES[:3]}
    return loss, {
        "samples": log["draws"],
        "sampled_tokens": log["sampled_tokens"],
        "stages": stages,
    }


def _generate(bench: Bench, sample: dict[str, Any]) -> Tensor:
    """SequenceGenerator's samples, ``[rows, length]``."""
    generator = sequence_generator(bench.work, bench.k)
    found = [row["tokens"] for samples in generator(sample) for row in samples]
    return data_utils.collate_tokens(found, bench.pad)


def sequence_generator(work: Workload, k: int) -> SequenceGenerator:
    """fairseq's generator as ``--sampling --beam K`` builds it."""
    dictionary, lengths = work.task.target_dictionary, work.lengths
    return SequenceGenerator(
        [work.model],
        dictionary,
        beam_size=k,
        max_len_a=lengths.a,
        max_len_b=lengths.b,
        min_len=lengths.minimum,
        search_strategy=search.Sampling(dictionary),
    )


def _as_rows(bench: Bench, sample: dict[str, Any], tokens: Tensor) -> Rows:
    """Rows of K sequences an input; what follows a sequence's first EOS becomes padding."""
    index = _input_index(bench, sample)
    ends = tokens.eq(bench.eos)
    after = ends.cumsum(1) - ends.long() > 0
    lengths = (~after & tokens.ne(bench.pad)).sum(1)
    return Rows(
        tokens=tokens.masked_fill(after, bench.pad),
        lengths=lengths,
        input_index=index,
        truncated=lengths > _length_limits(bench, sample)[index],
        multiplicity=torch.ones_like(lengths),
    )


def _input_index(bench: Bench, sample: dict[str, Any]) -> Tensor:
    return torch.arange(len(sample["id"]), device=sample["id"].device).repeat_interleave(bench.k)


def _length_limits(bench: Bench, sample: dict[str, Any]) -> Tensor:
    sampler = bench.work.task.build_sampler(bench.work.model)
    return sampler.length_limits(sample["net_input"]["src_lengths"])


def _rewards(bench: Bench, sample: dict[str, Any], rows: Rows) -> Tensor:
    rewards = bench.criterion.score_rows(sample, rows).rewards
    return torch.as_tensor(rewards, device=rows.tokens.device)


def _counts(rows: Rows) -> common.Row:
    return {"samples": len(rows), "sampled_tokens": int(rows.lengths.sum())}
