"""Stage two: log-probabilities of what was drawn, with gradient; and what it is compared with."""

from esrl_fairseq.rescoring.rescoring import Scores, rescore, unwrap

__all__ = ["Scores", "rescore", "unwrap"]
