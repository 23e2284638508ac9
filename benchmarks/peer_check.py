"""The same samples in both: log-probabilities, rewards, advantages, loss and its gradient."""

from __future__ import annotations

from typing import Any

import common
import torch
from fairseq import utils
from peer_setting import Setting
from peer_trainers import esrl_trainer, trl_trainer
from torch import Tensor

from esrl_fairseq.monitoring.logs import Clock
from esrl_fairseq.rescoring.rescoring import rescore

WEIGHTS = "decoder.model."
"""What stands before the names of transformers' parameters in fairseq's model."""


def check(setting: Setting, peer: str, kind: str, device: str, seed: int) -> common.Row:
    """Samples of ours, of any length up to the setting's, go through TRL's trainer.

    Args:
        peer: of TRL's trainers.
        kind: ``dr_grpo``: GRPO's loss without division by the rewards' spread and by lengths; ""
            is the trainer's default.

    Returns:
        Largest differences, see benchmarks/README.md. Where TRL's gradient is not ours times a
        known ``scale``, those of log-probabilities and rewards alone.
    """
    ours = our_side(setting, device, seed)
    more = {"loss_type": kind, "scale_rewards": "none"} if kind else {}
    theirs = their_side(setting, peer, ours, device, seed, more)
    one, other = ours["gradient"], theirs["gradient"]
    row = {
        "log_probs": _distance(ours["log_probs"], theirs["log_probs"]),
        "rewards": _distance(ours["rewards"], theirs["rewards"]),
        "cosine": float(one @ other / (one.norm() * other.norm())),
        "tokens": int(ours["mask"].sum()),
    }
    if peer == "trl_grpo" and not kind:
        return row
    # TRL's GRPO subtracts the mean of all K rewards, which leaves (K − 1)/K of leave-one-out's A.
    share = (setting.k - 1) / setting.k if kind else 1.0
    scale = share / setting.length if kind else 1.0
    advantages = theirs["advantages"] / share
    loss = -(advantages * theirs["log_probs"].sum(1)).mean()
    return {
        **row,
        "advantages": _distance(ours["advantages"], advantages),
        "loss": _distance(ours["loss"], loss),
        "gradient": _distance(one, other / scale) / float(one.abs().max()),
        "scale": scale,
    }


def our_side(setting: Setting, device: str, seed: int) -> dict[str, Any]:
    """Draw, and go through the criterion with α = 1."""
    trainer, (batch,) = esrl_trainer(setting, "--risk-alpha 1", device, seed, fixed=False)
    criterion, model, k = trainer.criterion.train(), trainer.model.train(), setting.k
    batch = utils.move_to_cuda(batch) if device == "cuda" else batch
    torch.manual_seed(seed)
    samples = criterion.draw(model, batch, Clock())
    criterion.judge(model, samples)
    samples.loss = criterion.objective.linearise(samples, seed)
    (criterion.rescore(model, samples) / samples.inputs).backward()
    loss = criterion.objective.losses(samples).sum() / samples.inputs
    rows = samples.rows
    with torch.no_grad():
        scores = rescore(model, batch["net_input"], rows, criterion.pad, criterion.eos, tokens=True)
    # TRL has a row for each draw.
    draws = torch.arange(len(rows)).repeat_interleave(rows.multiplicity.cpu())
    rewards = torch.as_tensor(samples.rewards)[draws]
    of_input = rewards.view(-1, k)
    inputs = batch["id"][rows.input_index].tolist()
    return {
        "ids": [_ids(rows, row, trainer.task.dictionary, model) for row in draws.tolist()],
        "prompts": [setting.texts[inputs[row]] for row in draws.tolist()],
        "mask": rows.scored()[draws],
        "log_probs": scores.token_log_probs[draws],
        "rewards": rewards,
        "advantages": (of_input - (of_input.sum(1, keepdim=True) - of_input) / (k - 1)).flatten(),
        "loss": loss.detach(),
        "gradient": _gradient(model, WEIGHTS),
    }


def _ids(rows: Any, row: int, dictionary: Any, model: Any) -> list[int]:
    """A row as TRL has it: the tokenizer's ids, without an EOS that was forced."""
    kept = int(rows.lengths[row]) - int(rows.truncated[row])
    places = rows.tokens[row, :kept].tolist()
    end = model.decoder.ends[0]
    return [end if i == dictionary.eos() else i - dictionary.nspecial for i in places]


def their_side(
    setting: Setting,
    peer: str,
    ours: dict[str, Any],
    device: str,
    seed: int,
    more: dict[str, Any],
) -> dict[str, Any]:
    """The trainer's own rewards, advantages, log-probabilities and loss, of our samples."""
    rows = len(ours["ids"])
    trainer = trl_trainer(peer, setting, rows, device, seed, fixed=False, **more)
    trainer.current_gradient_accumulation_steps = 1
    seen: dict[str, Tensor] = {}

    def generate(prompts: list[Any]) -> tuple[Any, ...]:
        read = trainer._tokenize_prompts(prompts)[0]
        words = trainer.processing_class.batch_decode(ours["ids"], skip_special_tokens=True)
        texts = [[{"role": "assistant", "content": text}] for text in words]
        if peer == "trl_rloo":
            return read, ours["ids"], texts
        return read, ours["ids"], None, texts, None, {}, None, []

    inner = trainer._get_per_token_logps_and_entropies

    def scored(*arguments: Any, **keywords: Any) -> Any:
        found = inner(*arguments, **keywords)
        seen["log_probs"] = found[0].detach()
        return found

    calculate = trainer._calculate_rewards

    def rewarded(*arguments: Any, **keywords: Any) -> Tensor:
        seen["rewards"] = calculate(*arguments, **keywords)
        return seen["rewards"]

    trainer._generate, trainer._calculate_rewards = generate, rewarded
    trainer._get_per_token_logps_and_entropies = scored
    trainer.model.train()
    inputs = [{"prompt": [{"role": "user", "content": text}]} for text in ours["prompts"]]
    found = trainer._generate_and_score_completions(inputs)
    trainer.compute_loss(trainer.model, found).backward()
    width = ours["log_probs"].size(1)
    log_probs = torch.zeros(rows, width)
    table = seen["log_probs"] * found["completion_mask"]
    log_probs[:, : table.size(1)] = table[:, :width].cpu()
    return {
        "log_probs": log_probs,
        "rewards": seen["rewards"].squeeze(1).cpu(),
        "advantages": found["advantages"].cpu(),
        "gradient": _gradient(trainer.model, ""),
    }


def _gradient(model: Any, before: str) -> Tensor:
    """All parameters' gradients in one vector, in the order of transformers' names."""
    named = {name[len(before) :]: p.grad for name, p in model.named_parameters()}
    return torch.cat([named[name].flatten().cpu().double() for name in sorted(named)])


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.cpu().double() - other.cpu().double()).abs().max())
