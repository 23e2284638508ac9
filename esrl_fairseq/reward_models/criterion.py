"""The criterion ``esrl_preference``: what a reward model is trained with (docs/rewards.md)."""

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from esrl_fairseq.core.preferences import bradley_terry_loss, correlation, rating_loss, wins
from esrl_fairseq.errors import EsrlError

MOMENTS = ("score", "rating", "score_squared", "rating_squared", "product")
"""Of the rated outputs; their means give the correlation."""


@dataclass
class PreferenceConfig(FairseqDataclass):
    """Options of the loss."""

    rating_weight: float = field(
        default=1.0, metadata={"help": "weight of the ratings: squared error, in deviations"}
    )
    preference_weight: float = field(
        default=1.0, metadata={"help": "weight of the preferences: Bradley-Terry"}
    )


@register_criterion("esrl_preference", dataclass=PreferenceConfig)
class PreferenceCriterion(FairseqCriterion):
    """w_r (score - rating)² summed over rated outputs + w_p Bradley-Terry over preferences."""

    def __init__(self, cfg: PreferenceConfig, task: Any):
        super().__init__(task)
        for name in ("rating_weight", "preference_weight"):
            if not 0 <= getattr(cfg, name) < math.inf:
                option = "--" + name.replace("_", "-")
                raise EsrlError(f"{option} is {getattr(cfg, name)}, but must be 0 or more")
        self.cfg = cfg

    @classmethod
    def build_criterion(cls, cfg: PreferenceConfig, task: Any) -> "PreferenceCriterion":
        return cls(cfg, task)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss summed over ratings and preferences, their number, and what to log."""
        scores = model(**sample["net_input"])
        rated, ratings = scores[sample["rated"]], sample["ratings"].float()
        preferred, other = scores[sample["preferred"]], scores[sample["other"]]

        rating = rating_loss(rated, ratings).sum()
        preference = bradley_terry_loss(preferred, other).sum()
        loss = self.cfg.rating_weight * rating + self.cfg.preference_weight * preference

        seen = rated.detach().double()
        log = {
            "loss": loss.detach(),
            "rating_loss": rating.detach(),
            "preference_loss": preference.detach(),
            "ratings": len(rated),
            "pairs": len(preferred),
            "wins": wins(preferred.detach(), other.detach()).sum(),
            "score": seen.sum(),
            "rating": ratings.double().sum(),
            "score_squared": (seen**2).sum(),
            "rating_squared": (ratings.double() ** 2).sum(),
            "product": (seen * ratings).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample["nsentences"],
        }
        return loss, sample["nsentences"], log

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        total = {
            key: float(sum(log.get(key, 0) for log in logging_outputs))
            for key in ("loss", "rating_loss", "preference_loss", "ratings", "pairs", "wins")
            + (*MOMENTS, "nsentences")
        }
        items, ratings, pairs = total["nsentences"], total["ratings"], total["pairs"]
        if items:
            metrics.log_scalar("loss", total["loss"] / items, items, round=4)
        if pairs:
            metrics.log_scalar("preference_loss", total["preference_loss"] / pairs, pairs, round=4)
            metrics.log_scalar("pair_accuracy", total["wins"] / pairs, pairs, round=4)
        if ratings:
            metrics.log_scalar("rating_loss", total["rating_loss"] / ratings, ratings, round=4)
            for name in MOMENTS:
                metrics.log_scalar(f"_{name}", total[name] / ratings, ratings)
            metrics.log_derived("correlation", _correlation)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def _correlation(meters: Any) -> float:
    return round(correlation(*(meters[f"_{name}"].avg for name in MOMENTS)), 4)
