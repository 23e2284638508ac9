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

from esrl_fairseq.core.losses import mrt_loss, reinforce_loss
from esrl_fairseq.core.sequences import Rows, shift_right
from esrl_fairseq.criterion import Clock, EsrlCriterion

STAGES = ("stage_one", "reward", "stage_two", "backward", "step")


@dataclass
class Bench:
    """A workload with what an update needs beside it.

    Attributes:
        k: samples per input.
        sampler: how the standard methods draw a word: ``multinomial`` as published code does, or
            ``inverse_cdf``, so that they differ from ESRL in nothing but the graph.
    """

    work: Workload
    criterion: EsrlCriterion
    optimizer: torch.optim.Optimizer
    k: int
    sampler: str

    @property
    def pad(self) -> int:
        return self.work.task.target_dictionary.pad()

    @property
    def eos(self) -> int:
        return self.work.task.target_dictionary.eos()


def make_bench(work: Workload, k: int, sampler: str, max_sampled_tokens: int) -> Bench:
    """The real criterion, and an Adam that does its work with a learning rate of 0.

    So repeats and methods meet the same model.
    """
    work.task.options.num_samples = k
    criterion = work.criterion(max_sampled_tokens=max_sampled_tokens).train()
    optimizer = torch.optim.Adam(work.model.parameters(), lr=0.0)
    return Bench(work, criterion, optimizer, k, sampler)


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
    stages = {f"seconds_{stage}": clock.seconds.get(stage, 0.0) for stage in STAGES}
    return {"seconds": seconds, **stages, **counts}


def two_stage(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """ESRL: the criterion as ``fairseq-train`` calls it."""
    bench.work.model.train()
    loss, _, log = bench.criterion(bench.work.model, sample)
    clock.seconds.update({stage: log[f"seconds_{stage}"] for stage in STAGES[:3]})
    return loss, {"samples": log["draws"], "sampled_tokens": log["sampled_tokens"]}


def standard_kv(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """REINFORCE with the graph kept through autoregressive sampling, decoder states cached."""
    return _standard(bench, sample, clock, cached=True)


def standard_nokv(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """The same, but every step decodes the whole prefix again, as published code does."""
    return _standard(bench, sample, clock, cached=False)


def fairseq_mrt(bench: Bench, sample: dict[str, Any], clock: Clock) -> tuple[Tensor, common.Row]:
    """MRT as in fairseq's old branch: sources repeated K times, softmax over all positions."""
    with clock("stage_one"):
        rows = _as_rows(bench, sample, _generate(bench, sample))
    with clock("reward"):
        rewards = _rewards(bench, sample, rows)
    with clock("stage_two"):
        net_input, model = sample["net_input"], bench.work.model.eval()
        output = model(
            src_tokens=net_input["src_tokens"][rows.input_index],
            src_lengths=net_input["src_lengths"][rows.input_index],
            prev_output_tokens=shift_right(rows.tokens, rows.lengths, bench.eos, bench.pad),
        )
        words = model.get_normalized_probs(output, log_probs=True)
        chosen = words.gather(2, rows.tokens.unsqueeze(2)).squeeze(2)
        log_probs = chosen.masked_fill(~rows.scored(), 0).float().sum(1)
        inputs, alpha = len(sample["id"]), bench.criterion.alpha
        loss = mrt_loss(log_probs, rewards, rows.input_index, inputs, alpha).sum()
    return loss, _counts(rows)


METHODS: dict[str, Callable[[Bench, dict[str, Any], Clock], tuple[Tensor, common.Row]]] = {
    "two_stage": two_stage,
    "standard_kv": standard_kv,
    "standard_nokv": standard_nokv,
    "fairseq_mrt": fairseq_mrt,
}


def _standard(
    bench: Bench, sample: dict[str, Any], clock: Clock, cached: bool
) -> tuple[Tensor, common.Row]:
    with clock("stage_one"):
        tokens, log_probs = _sample_with_graph(bench, sample, cached)
        rows = _as_rows(bench, sample, tokens)
        log_probs = (log_probs * rows.scored()).sum(1)
    with clock("reward"):
        rewards = _rewards(bench, sample, rows)
    inputs, baseline = len(sample["id"]), float(rewards.mean())
    loss = reinforce_loss(
        log_probs,
        rewards,
        rows.input_index,
        inputs,
        bench.criterion.alpha,
        baseline,
        rows.multiplicity,
    )
    return loss.sum(), _counts(rows)


def _sample_with_graph(bench: Bench, sample: dict[str, Any], cached: bool) -> tuple[Tensor, Tensor]:
    """Sampled tokens and their log-probabilities with gradient, both ``[rows, length]``.

    Rows stay in the batch until all have ended.
    """
    model = bench.work.model.eval()
    index = _input_index(bench, sample)
    limits = _length_limits(bench, sample)[index]
    encoder_out = model.encoder.forward_torchscript(sample["net_input"])
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, index)
    state: dict[str, Any] | None = {} if cached else None
    tokens = torch.full_like(index, bench.eos).unsqueeze(1)
    ended = torch.zeros_like(index, dtype=torch.bool)
    log_probs = []
    for step in range(int(limits.max()) + 1):
        output = model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
        policy = _log_policy(bench, output[0][:, -1], step)
        chosen = _draw(policy.detach(), bench.sampler)
        chosen = chosen.masked_fill(ended | (limits <= step), bench.eos)
        log_probs.append(policy.gather(1, chosen.unsqueeze(1)))
        tokens = torch.cat([tokens, chosen.unsqueeze(1)], dim=1)
        ended = ended | (chosen == bench.eos)
        if bool(ended.all()):
            break
    return tokens[:, 1:], torch.cat(log_probs, dim=1)


def _log_policy(bench: Bench, scores: Tensor, step: int) -> Tensor:
    """Log-probabilities ``[rows, words]`` of what may be drawn; what may not has about -1e30."""
    never = [bench.pad] + [bench.eos] * (step < bench.work.lengths.minimum)
    masked = scores.float().index_fill(1, torch.tensor(never, device=scores.device), -1e30)
    return masked.log_softmax(1)


def _draw(policy: Tensor, sampler: str) -> Tensor:
    if sampler == "multinomial":
        return torch.multinomial(policy.exp(), 1).squeeze(1)
    cdf = policy.exp().cumsum(1)
    target = torch.rand_like(cdf[:, :1]) * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(1).clamp(max=cdf.size(1) - 1)


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
