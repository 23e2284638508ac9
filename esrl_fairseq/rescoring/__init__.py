"""Stage two: log-probabilities of what was drawn, with gradient; and what it is compared with."""

from esrl_fairseq.rescoring.rescoring import rescore, unwrap

__all__ = ["rescore", "unwrap"]
