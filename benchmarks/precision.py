"""How far stage one and stage two are apart by precision, and how far gradients are from float32's.

One row a precision and way to decode. The same rows are scored in all of them, so that nothing but
rounding differs. See benchmarks/README.md.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple
from unittest import mock

import common
import numpy as np
import torch
from torch import Tensor
from workload import Workload, workloads

from esrl_fairseq.core.scores import without_duplicates
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.sampling.generation import STRATEGIES

COLUMNS = (
    "precision", "decoding", "tokens", "apart", "apart_most", "bias", "row_apart", "from_fp32",
    "gradient_cosine", "gradient_apart", "reason",
)  # fmt: skip
DECODING = dict(zip(("branches", "fixed rows"), STRATEGIES))


class Precision(NamedTuple):
    """How a model computes.

    Attributes:
        weights: their type, as of ``--bf16`` and ``--fp16``.
        autocast: type of ``--amp``'s matrix products; None: without.
    """

    weights: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def loss_scale(self) -> float:
        """fairseq's first one for float16, whose small gradients would be 0 otherwise."""
        return 128.0 if torch.float16 in self else 1.0

    def computing(self, device: str) -> Any:
        """The context of both stages."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=self.autocast)


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "amp, bf16": Precision(torch.float32, torch.bfloat16),
    "amp, fp16": Precision(torch.float32, torch.float16),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
}


def main() -> None:
    """Every size and K."""
    parser = common.make_parser(__doc__, k=(8,))
    options = parser.parse_args()
    common.check_options(options)
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for work in workloads(options):
        for k in options.k:
            rows += measure(work, k, options.seed)
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def measure(work: Workload, k: int, seed: int) -> list[common.Row]:
    """Float32 first, which the others are compared with."""
    found, rows = Exact(), []
    for name, precision in PRECISIONS.items():
        model = copy.deepcopy(work.model).to(precision.weights)
        for decoding in DECODING:
            one = {"precision": name, "decoding": decoding, **work.about, "k": k}

            def case(model: Any = model, how: Any = (precision, decoding)) -> common.Row:
                return compare(work, model, *how, k, seed, found)

            rows.append({**one, **common.attempt(case)})
    return rows


class Exact:
    """What float32 gives: stage two's log-probabilities of its own rows, and the gradient."""

    scores: Tensor | None = None
    gradient: Tensor | None = None
    drawn: Any = None


def compare(
    work: Workload,
    model: Any,
    precision: Precision,
    decoding: str,
    k: int,
    seed: int,
    exact: Exact,
) -> common.Row:
    """One row: differences of a token's log-probability in nats, and of the gradient."""
    batch = work.batches[0]
    sampler = work.task.build_sampler(model)
    sampler.strategy = DECODING[decoding]
    counts = np.full(len(batch["id"]), k)
    with precision.computing(work.device):
        rows, one = sampler.sample(batch, counts, np.ones(len(counts), np.float32), seed)
        two = scored(sampler, model, batch, rows)
    there = rows.scored()
    apart = (one.token_log_probs - two)[there]
    by_row = (one.token_log_probs - two).sum(1)
    if exact.drawn is None:
        exact.drawn = rows, one
    rows, _ = exact.drawn
    with precision.computing(work.device):
        again = scored(sampler, model, batch, rows)
        gradient = gradient_of(work, model, exact.drawn, precision.loss_scale)
    if exact.scores is None:
        exact.scores, exact.gradient = again, gradient
    assert exact.gradient is not None
    return {
        "tokens": int(there.sum()),
        "apart": float(apart.abs().mean()),
        "apart_most": float(apart.abs().max()),
        "bias": float(apart.mean()),
        "row_apart": float(by_row.abs().mean()),
        "from_fp32": float((again - exact.scores)[rows.scored()].abs().mean()),
        "gradient_cosine": float(torch.cosine_similarity(gradient, exact.gradient, dim=0)),
        "gradient_apart": float((gradient - exact.gradient).norm() / exact.gradient.norm()),
    }


def scored(sampler: Any, model: Any, batch: Any, rows: Any) -> Tensor:
    """Stage two's log-probability of each token, ``[rows, length]``, on the host."""
    how = {"min_len": sampler.min_len, "tokens": True}
    with torch.no_grad():
        found = rescore(model, batch["net_input"], rows, sampler.pad, sampler.eos, **how)
    scores = found.on_host().token_log_probs
    assert scores is not None
    return scores.float()


def gradient_of(work: Workload, model: Any, drawn: Any, scale: float) -> Tensor:
    """That of an update of ESRL from these rows, float64 ``[parameters]``."""
    criterion = work.criterion(reward="bleu").train()
    work.task.begin_epoch(1, model)
    torch.manual_seed(1)
    with mock.patch.object(criterion, "sample_rows", lambda *_: without_duplicates(*drawn)):
        loss, _, _ = criterion(model.train(), work.batches[0])
    (loss * scale).backward()
    grads = [
        p.grad.flatten().double().cpu() / scale for p in model.parameters() if p.grad is not None
    ]
    model.zero_grad(), model.eval()
    return torch.cat(grads)


if __name__ == "__main__":
    main()
