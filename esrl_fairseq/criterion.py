"""The criterion ``esrl``: reads as the algorithm."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from torch import Tensor

from esrl_fairseq.checks.criterion import check_criterion_options, kl_reference_file
from esrl_fairseq.checks.idle import warn_of_idle_options
from esrl_fairseq.checks.options import check_comparison, check_dropout, check_reward
from esrl_fairseq.core.baselines import build_baseline
from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.controls import control_rewards
from esrl_fairseq.core.kl import penalised_rewards
from esrl_fairseq.core.sampling import inverse_cdf_sample
from esrl_fairseq.core.schedules import Plan
from esrl_fairseq.core.scores import Scores, without_duplicates
from esrl_fairseq.core.sequences import Rows, append_rows
from esrl_fairseq.monitoring import logs
from esrl_fairseq.monitoring.validation import validate
from esrl_fairseq.objective import Objective
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.rescoring.frozen import FrozenModel
from esrl_fairseq.rescoring.rescoring import learn, rescore, unwrap
from esrl_fairseq.rescoring.standard import Draw, sample_with_graph
from esrl_fairseq.rewards.scorer import Scored, build_scorer
from esrl_fairseq.sampling.conditioning import reference_tokens
from esrl_fairseq.sampling.options import deciding_capability, fewest_samples, often_one_sample
from esrl_fairseq.sampling_task import SamplingTask
from esrl_fairseq.state.corpus import CorpusCounts
from esrl_fairseq.state.kl_state import KLState
from esrl_fairseq.state.replay import Replay
from esrl_fairseq.state.samples import Samples
from esrl_fairseq.state.visits import bad_numbers, build_observer, of_draws
from esrl_fairseq.task import attach_sampling

logger = logging.getLogger(__name__)


@register_criterion("esrl", dataclass=EsrlCriterionConfig)
class EsrlCriterion(FairseqCriterion):
    """Fused MRT/REINFORCE on a sequence-level reward, with a reward baseline, or its rivals."""

    def __init__(self, cfg: EsrlCriterionConfig, task: Any):
        check_criterion_options(cfg, getattr(task, "pretrained", ""))
        if not isinstance(task, SamplingTask):
            attach_sampling(task)
        super().__init__(task)
        self.cfg = cfg
        self.pad, self.eos = task.target_dictionary.pad(), task.eos
        self.draw_word: Draw = inverse_cdf_sample  # standard sampling's; benchmarks try another
        options = task.options
        check_comparison(cfg, options.num_samples, fewest_samples(options))
        check_dropout(cfg, often_one_sample(options))
        task.rl.baseline = build_baseline(
            cfg.reward_baseline, cfg.baseline_queue_size, cfg.baseline_decay, cfg.baseline_window
        )
        task.rl.kl = KLState(cfg.kl_weight, cfg.kl_target)
        if cfg.kl_weight > 0:
            task.frozen = FrozenModel(kl_reference_file(cfg), task)
        self.objective = Objective(cfg)
        if cfg.objective == "ppo":
            task.rl.replay = Replay(cfg.ppo_passes, self.objective.ppo.kind)
        self.scorer = build_scorer(cfg, task, cfg.reward)
        logger.info("reward: %s", self.scorer.reward.signature())
        capability = deciding_capability(options)
        check_reward(self.scorer.reward, capability)
        self.observer = build_observer(cfg, task, self.scorer.reward, capability)
        warn_of_idle_options(cfg, options, capability, self.scorer.reward)
        task.trained_by_reward, task.scorer = True, self.scorer
        task.rl.corpus = CorpusCounts(self.scorer.reward)
        task.references_for = self._references_for(capability)
        task.references_optional = self.scorer.reward.references_optional

    @classmethod
    def build_criterion(cls, cfg: EsrlCriterionConfig, task: Any) -> "EsrlCriterion":
        return cls(cfg, task)

    def _references_for(self, capability: str) -> str:
        """The option that needs references; empty if none does."""
        if self.scorer.reward.needs_references:
            return f"--reward {self.cfg.reward}"
        if capability == "bleu":
            return "--capability bleu"
        return f"--mle-weight {self.cfg.mle_weight}" if self.cfg.mle_weight > 0 else ""

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss summed over the batch's inputs, their number, and what to log."""
        if not self.training:
            return validate(model, sample, self.task, self.scorer, self.cfg.valid_beam)
        self.task.monitor.end_validation()
        clock = logs.Clock()
        samples = self.task.rl.replay.next(sample["id"].device)  # later passes of PPO
        drawn = samples is None
        if samples is None:
            samples = self.draw(model, sample, clock)
        with clock("stage_two"):
            if drawn:
                self.judge(model, samples)
                samples.loss = self.objective.linearise(samples, torch.initial_seed())
            total = self.rescore(model, samples)
            losses = self.objective.losses(samples)
        result = self.result(samples, total, losses, clock.seconds)
        if drawn:  # last, so that nothing is if memory runs out
            self.remember(samples)
        return result

    def train(self, mode: bool = True) -> "EsrlCriterion":
        """fairseq calls it with True before the batches of each update."""
        if mode:
            self.task.begin_update()
        return super().train(mode)

    def draw(self, model: Any, sample: dict[str, Any], clock: logs.Clock) -> Samples:
        """Stage one and the rewards; standard sampling's scores have a gradient already."""
        plan = self.task.plan(sample)
        scores = references = None
        with clock("stage_one"):
            if self.cfg.sampling_mode == "two-stage":
                rows, drawn = self.sample_rows(model, sample, plan)
            else:
                rows, scores, references = self.sample_with_graph(model, sample, plan)
                drawn = scores.on_host()
        with clock("reward"):
            scored = self.score_rows(sample, rows)
            rewards = self.given_rewards(sample, scored)
        return Samples(
            sample,
            plan,
            rows,
            drawn,
            scored,
            rewards,
            self.task.dummy_batch,
            scores=scores,
            references=references,
        )

    def rescore(self, model: Any, samples: Samples) -> Tensor:
        """Stage two: the chosen rows' scores, and those of the references if the loss needs them.

        References ride along as further rows, so the wrapped model's forward is called once.

        Returns:
            A scalar with the gradient of the loss; the scores have none.
        """
        rows, device = samples.chosen, samples.batch["id"].device
        term = self.objective.term(samples, device)
        if samples.scores is not None:  # standard sampling's, of all rows
            assert samples.loss is not None
            scores = samples.scores[samples.loss.chosen.to(device)]
            total = term(torch.arange(len(rows), device=device), scores)
            if samples.references is not None:
                total = total - self.objective.likelihood(samples.references)
                samples.references = samples.references.on_host()
            samples.scores = scores.on_host()
            return total
        references = self.references(samples.batch)
        wanted = rows if references is None else append_rows(rows, references.cpu(), self.pad)
        how = self.scoring(wanted, samples.plan)
        scores, total = learn(model, samples.batch["net_input"], wanted, term, **how)
        scores = scores.on_host()
        samples.scores = scores[: len(rows)]
        samples.references = None if references is None else scores[len(rows) :]
        return total

    def judge(self, model: Any, samples: Samples) -> None:
        """Subtract KL penalty and what was expected from the rewards, and choose their baseline."""
        log_ratio = self.log_ratio(model, samples)
        samples.kl = float(of_draws(log_ratio, samples.rows).sum(dtype=np.float64))
        samples.rewards = penalised_rewards(samples.rewards, log_ratio, self.task.rl.kl.weight)
        if self.cfg.input_baseline and not samples.dummy:
            expected = self.task.rl.offsets(host_ids(samples.batch))
            samples.rewards = samples.rewards - expected[samples.rows.input_index.numpy()]
        samples.baseline = self.task.rl.baseline.value(of_draws(samples.rewards, samples.rows))

    def remember(self, samples: Samples) -> None:
        """Keep what was drawn for later passes, and what it showed; no dummy shows anything."""
        rows, scores = samples.rows, samples.scores
        assert scores is not None
        visit = None if samples.dummy else self.observer.visit(samples)
        self.task.refuse_numbers("" if visit is None else bad_numbers(samples, visit))
        if self.cfg.objective == "ppo":
            old_log_probs = self.objective.ppo.log_probs(scores, samples.chosen)
            self.task.rl.replay.keep(replace(samples, old_log_probs=old_log_probs))
        if visit is None:
            return
        self.task.rl.add(visit)
        scored, truncated = samples.scored, int((rows.truncated * rows.multiplicity).sum())
        rewards, words = of_draws(scored.rewards, rows), (scored.words, scored.reference_words)
        self.task.monitor.add_batch(float(rewards.sum()), len(rewards), truncated, *words)
        self.task.monitor.add_choice(samples, self.cfg.rescored_share)

    def result(
        self, samples: Samples, total: Tensor, losses: Tensor, seconds: dict[str, float]
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """What fairseq wants of a batch; the loss has the gradient of ``total``."""
        inputs, value = samples.inputs, losses.sum()
        if samples.references is not None:
            value = value - self.objective.likelihood(samples.references)
        log = logs.training_log(self.task.options, self.objective, samples, losses, seconds)
        two_stage = self.cfg.sampling_mode == "two-stage" and not self.cfg.rescoring_dropout
        if two_stage and self.task.rl.replay.current_pass == 1:  # one policy in both
            log["stages_apart"] = logs.stages_apart(samples)
        if self.cfg.objective == "ppo":
            log.update(self.objective.ppo.log(samples, self.task.rl.replay.current_pass))
        loss = value + (total - total.detach())
        log.update(loss=value, sample_size=inputs, nsentences=inputs)
        log.update(ntokens=samples.batch["ntokens"])
        if self.task.frozen is not None:
            log.update(kl=samples.kl, kl_weight=self.task.rl.kl.weight)
        if samples.dummy:  # fairseq leaves out those that it gives, not those that were kept
            return 0 * loss, 0, {key: 0 * value for key, value in log.items()}
        return loss, inputs, log

    def sample_rows(self, model: Any, sample: dict[str, Any], plan: Plan) -> tuple[Rows, Scores]:
        """Stage one; equal samples of an input become one row with a multiplicity."""
        sampler = self.task.build_sampler(unwrap(model))
        # fairseq seeds torch with seed + update, on every rank alike; ids tell the inputs apart.
        drawn = sampler.sample(sample, plan.counts, plan.temperature, torch.initial_seed())
        return without_duplicates(*drawn)

    def sample_with_graph(
        self, model: Any, sample: dict[str, Any], plan: Plan
    ) -> tuple[Rows, Scores, Scores | None]:
        """Standard sampling: what sample_rows and rescore give, in one pass."""
        rows, scores, references = sample_with_graph(
            model,
            sample,
            self.task.build_sampler(unwrap(model)),
            plan.counts,
            plan.temperature,
            torch.initial_seed(),
            cached=self.cfg.sampling_mode == "standard",
            dropout=self.cfg.rescoring_dropout,
            tempered=self.cfg.temperature_correction != "none",
            references=self.references(sample),
            max_tokens=self.cfg.max_sampled_tokens,
            draw=self.draw_word,
        )
        return *without_duplicates(rows, scores), references

    def score_rows(self, sample: dict[str, Any], rows: Rows) -> Scored:
        """Rewards of the rows' texts."""
        return self.scorer.score(sample, rows.tokens.tolist(), rows.input_index.tolist())

    def given_rewards(self, sample: dict[str, Any], scored: Scored) -> np.ndarray:
        """What loss and baseline see of the rewards: all of them, unless a control is on."""
        ids = host_ids(sample).tolist()
        return control_rewards(scored.rewards, self.cfg.reward_control, torch.initial_seed(), ids)

    @torch.no_grad()
    def log_ratio(self, model: Any, samples: Samples) -> np.ndarray:
        """log p − log p_ref of each row, [rows], under what is trained; 0 without --kl-weight."""
        plain, rows, scores = unwrap(model), samples.rows, samples.drawn
        frozen = self.task.frozen_model(plain)
        if frozen is None:
            return np.zeros(len(rows), dtype=np.float32)
        given = samples.batch["net_input"], rows
        how = {**self.scoring(rows, samples.plan), "dropout": False, "tokens": False}
        if self.cfg.rescoring_dropout and samples.scores is not None:
            # Standard sampling's has dropout, which makes p smaller, and is not in p_ref.
            scores = rescore(plain, *given, **how).on_host()
        with self.task.frozen.turn(plain):
            reference = rescore(frozen, *given, **how).on_host()
        trained = self.objective.trained
        return (trained(scores) - trained(reference)).numpy()

    def references(self, sample: dict[str, Any]) -> Tensor | None:
        """Tokens ``[inputs, length]`` of those whose likelihood counts."""
        return reference_tokens(sample, self.pad, self.eos) if self.cfg.mle_weight else None

    def scoring(self, rows: Rows, plan: Plan) -> dict[str, Any]:
        """How stage two scores rows; at their temperature and by tokens if the loss needs it."""
        temperature = None
        if self.cfg.temperature_correction != "none":
            temperature = torch.as_tensor(plan.temperature)[rows.input_index]
        return {
            "pad": self.pad,
            "eos": self.eos,
            "min_len": self.task.options.sample_min_len,
            "dropout": self.cfg.rescoring_dropout,
            "max_tokens": self.cfg.max_sampled_tokens,
            "temperature": temperature,
            "tokens": self.cfg.objective == "ppo" and self.cfg.ppo_level == "token",
        }

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        logs.reduce(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
