"""Sequence-level rewards: text in, one float32 per hypothesis out.

``build_reward("bleu", tokenize="13a")`` makes one, ``build_reward("bleu:0.5+chrf:0.5")`` a
weighted sum, ``build_reward("chrf*length-gate")`` a product; ``@register_reward("name")`` on a
subclass of `Reward` adds one, in this package or in any module that is imported before training
starts. docs/rewards.md lists them.
"""

from esrl_fairseq.rewards.base import (
    Reward,
    register_reward,
    reward_names,
    score_rows,
)
from esrl_fairseq.rewards.bertscore import BertScoreReward
from esrl_fairseq.rewards.bleu import BleuReward
from esrl_fairseq.rewards.build import build_reward
from esrl_fairseq.rewards.chrf import ChrfReward
from esrl_fairseq.rewards.comet import CometReward
from esrl_fairseq.rewards.corpus_bleu import CorpusBleuReward
from esrl_fairseq.rewards.hf_reward import HfReward
from esrl_fairseq.rewards.language_gate import LanguageGate
from esrl_fairseq.rewards.length import LengthReward
from esrl_fairseq.rewards.length_gate import LengthGate
from esrl_fairseq.rewards.model import ModelReward
from esrl_fairseq.rewards.repetition import RepetitionReward
from esrl_fairseq.rewards.rouge import (
    Rouge1Reward,
    Rouge2Reward,
    RougeLReward,
    RougeLsumReward,
    RougeReward,
)
from esrl_fairseq.rewards.sentence_embedding import SentenceEmbeddingReward
from esrl_fairseq.rewards.settings import command_line_options
from esrl_fairseq.rewards.ter import TerReward
from esrl_fairseq.rewards.weighted_sum import Product, WeightedSum

__all__ = [
    "BertScoreReward",
    "BleuReward",
    "ChrfReward",
    "CometReward",
    "CorpusBleuReward",
    "HfReward",
    "LanguageGate",
    "LengthGate",
    "LengthReward",
    "ModelReward",
    "Product",
    "RepetitionReward",
    "Reward",
    "Rouge1Reward",
    "Rouge2Reward",
    "RougeLReward",
    "RougeLsumReward",
    "RougeReward",
    "SentenceEmbeddingReward",
    "TerReward",
    "WeightedSum",
    "build_reward",
    "command_line_options",
    "register_reward",
    "reward_names",
    "score_rows",
]
