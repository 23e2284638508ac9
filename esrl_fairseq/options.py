"""Options of the criterion; checks/criterion.py refuses values that cannot work.

Longer than 300 lines because it is a list: one entry an option.
"""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from esrl_fairseq.core.baselines import KINDS
from esrl_fairseq.core.selection import KINDS as SELECTIONS

DEFAULT_RISK_ALPHA = 0.005
"""Shen et al. 2016, for log-probabilities summed over a sentence."""
LEVELS = ("sequence", "token")
"""What PPO compares the probabilities of."""


@dataclass
class EsrlCriterionConfig(FairseqDataclass):
    """Options of reward and loss."""

    objective: ChoiceEnum(  # type: ignore[valid-type]
        ["fused", "mrt", "reinforce", "rloo", "ppo"]
    ) = field(
        default="fused",
        metadata={
            "help": "fused: MRT where an input has several distinct samples, otherwise REINFORCE; "
            "mrt or reinforce: that one for all inputs; rloo: REINFORCE, a sample's baseline being "
            "the mean reward of the input's other samples (none with one sample); ppo: several "
            "updates from the same samples, with the clipped surrogate"
        },
    )
    reward: str = field(
        default="bleu",
        metadata={
            "help": "bleu, corpus-bleu, chrf, ter, rouge, rouge1, rouge2, rougeL, rougeLsum, "
            "length, repetition, model, bertscore, comet, sentence-embedding, hf-reward, "
            "language-gate, length-gate, "
            "python:module.function for your own, or a weighted sum such as bleu:0.5+chrf:0.5, "
            "also of products: comet*language-gate:0.7+bleu:0 (0: log it alone); "
            "see docs/rewards.md"
        },
    )
    reward_model: Optional[str] = field(
        default=None,
        metadata={
            "help": "of a reward that needs a model: for `model` a checkpoint of the task "
            "esrl_reward_model, for bertscore, comet, sentence-embedding and hf-reward a folder or "
            "hub name"
        },
    )
    reward_device: Optional[str] = field(
        default=None,
        metadata={
            "help": "where the model of the reward runs: cpu, cuda, cuda:1, … (default: a GPU if "
            "torch finds one)"
        },
    )
    reward_options: Optional[str] = field(
        default=None,
        metadata={
            "help": "further options of rewards as REWARD.OPTION=VALUE, separated by commas, such "
            "as chrf.word_order=2,corpus-bleu.statistics=validation; see docs/rewards.md"
        },
    )
    reward_timeout: float = field(
        default=600.0,
        metadata={
            "help": "seconds for a batch's rewards; then the run is saved and ends (0: no limit)"
        },
    )
    reward_workers: int = field(
        default=0,
        metadata={
            "help": "processes of their own for rewards that are no models, among which rows are "
            "dealt out, for slow functions and metrics on several cores; 0: the trainer computes "
            "them. Each rank has so many"
        },
    )
    reward_tokenize: str = field(
        default="13a",
        metadata={"help": "tokenizer of bleu and corpus-bleu: 13a, none, intl, char or zh"},
    )
    reward_smoothing: str = field(
        default="exp", metadata={"help": "smoothing of the reward bleu: exp, floor, add-k or none"}
    )
    reward_post_process: str = field(
        default="subword_nmt",
        metadata={
            "help": "how to join sub-words before scoring, as --post-process of fairseq-generate: "
            "subword_nmt, sentencepiece, …; none leaves them. It has to fit the marks in the "
            "dictionary of the data"
        },
    )
    reward_detokenizer: Optional[str] = field(
        default=None,
        metadata={
            "help": "detokenize before scoring (moses, space, …); by default text is scored "
            "as it is in the data"
        },
    )
    risk_alpha: Optional[float] = field(
        default=None,
        metadata={
            "help": "sharpness of MRT's distribution over samples (default: 0.005, made for "
            "log-probabilities summed over a sentence)"
        },
    )
    risk_candidates: ChoiceEnum(["distinct", "draws"]) = field(  # type: ignore[valid-type]
        default="distinct",
        metadata={
            "help": "what MRT, also that of --objective fused, compares: an input's distinct "
            "samples, each once (distinct), or all draws, equal ones as often as they came (draws)"
        },
    )
    length_normalization: bool = field(
        default=False,
        metadata={
            "help": "divide log-probabilities by length; --objective fused and mrt then need a "
            "--risk-alpha made for that"
        },
    )
    reward_baseline: ChoiceEnum(list(KINDS)) = field(  # type: ignore[valid-type]
        default="fifo",
        metadata={
            "help": "what REINFORCE subtracts from rewards: the mean of a queue of past rewards "
            "(fifo), a moving average of the updates' means (ema), the mean over the last updates "
            "(window), the batch's own mean (batch, slightly biased), the mean of the input's own "
            "samples (group, as GRPO), or nothing (none)"
        },
    )
    input_baseline: bool = field(
        default=False,
        metadata={
            "help": "subtract from rewards also what the input's last visit lets expect beyond the "
            "average; changes nothing where an input's samples are compared with each other"
        },
    )
    baseline_queue_size: int = field(
        default=1000, metadata={"help": "rewards in the queue of --reward-baseline fifo"}
    )
    baseline_decay: float = field(
        default=0.9,
        metadata={
            "help": "weight of the past in --reward-baseline ema, from 0 to below 1; it reaches "
            "back about 1/(1 - decay) updates"
        },
    )
    baseline_window: int = field(
        default=10, metadata={"help": "updates that --reward-baseline window reaches back"}
    )
    ppo_passes: int = field(
        default=2,
        metadata={
            "help": "updates that --objective ppo makes from each batch of samples; an epoch then "
            "samples only one in so many of its batches"
        },
    )
    ppo_clip: float = field(
        default=0.2,
        metadata={
            "help": "epsilon of --objective ppo: probabilities gain nothing by leaving "
            "[1 - epsilon, 1 + epsilon] times those at the time of sampling"
        },
    )
    ppo_clip_high: Optional[float] = field(
        default=None,
        metadata={
            "help": "another epsilon for the upper end, as DAPO's clip-higher (default: --ppo-clip)"
        },
    )
    ppo_level: ChoiceEnum(list(LEVELS)) = field(  # type: ignore[valid-type]
        default="token",
        metadata={"help": "--objective ppo clips the probability of each token or each sequence"},
    )
    reward_scaling: ChoiceEnum(["none", "input", "batch"]) = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "divide advantages by the standard deviation of the rewards of the input's "
            "samples (input, as GRPO) or of the batch's (batch)"
        },
    )
    rescored_share: float = field(
        default=1.0,
        metadata={
            "help": "share of the batch's sampled tokens that stage two gets, above 0 and at most "
            "1: all are sampled and scored by the reward, and the gradient is made of the rows "
            "that move the model most"
        },
    )
    selection: ChoiceEnum(list(SELECTIONS)) = field(  # type: ignore[valid-type]
        default="top",
        metadata={
            "help": "which rows --rescored-share takes: those that move the model most (top), "
            "by chance in proportion to these with weights that take the bias away (unbiased), or "
            "half of the share so and half so (mixed)"
        },
    )
    sampling_mode: ChoiceEnum(["two-stage", "standard", "standard-nocache"]) = field(  # type: ignore[valid-type]
        default="two-stage",
        metadata={
            "help": "two-stage: sample without a graph, then score in one parallel pass; standard: "
            "keep the graph while sampling, as published REINFORCE and MRT do, for comparison: "
            "slower and larger, same samples and gradients (but with --rescoring-dropout it draws "
            "with dropout); standard-nocache: also without the decoder's cache",
            # The field cannot have that name: fairseq would set its own generation.sampling, too.
            "argparse_alias": "--sampling",
        },
    )
    temperature_correction: ChoiceEnum(  # type: ignore[valid-type]
        ["none", "tempered", "importance"]
    ) = field(
        default="none",
        metadata={
            "help": "samples drawn at a temperature other than 1 come from another distribution "
            "than the one that is trained: ignore that (none, as the paper), train the one that "
            "was drawn from (tempered), or weigh the samples by p/q (importance)"
        },
    )
    importance_clip: float = field(
        default=2.0,
        metadata={"help": "largest weight of --temperature-correction importance, above 0"},
    )
    mle_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the references' likelihood beside the reward; 0.3 is common"},
    )
    kl_weight: float = field(
        default=0.0,
        metadata={
            "help": "lambda: the loss sees the reward minus lambda*(log p(sample) - log "
            "p_ref(sample)), p_ref being the frozen start model; reward per nat (0: off)"
        },
    )
    kl_target: Optional[float] = field(
        default=None,
        metadata={
            "help": "adapt --kl-weight, which then is where it starts, by up to 2%% an update so "
            "that the KL becomes this many nats a sequence"
        },
    )
    kl_reference: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the frozen model, of the run's architecture (default: that of "
            "--finetune-from-model, or of --restore-file where it is given, otherwise --hf-model)"
        },
    )
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    restore_file: str = II("checkpoint.restore_file")
    freeze_encoder: bool = field(
        default=False,
        metadata={
            "help": "do not train the encoder, nor what others share with it (joined embeddings): "
            "no gradients, no optimizer state"
        },
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={
            "help": "do not train embeddings of words and of learned positions, nor an output "
            "projection that is tied to them"
        },
    )
    rescoring_dropout: bool = field(
        default=False,
        metadata={
            "help": "keep dropout in stage two (the pass with gradient); that pass draws the "
            "samples, too, with --sampling standard"
        },
    )
    max_sampled_tokens: int = field(
        default=0,
        metadata={
            "help": "most sampled tokens whose activations stage two has in memory at once; in "
            "float16, in which it keeps them for the backward pass, others are computed twice. "
            "Lower saves memory, higher saves time; 0: 4096 on a CPU, 16384 elsewhere, less where "
            "its memory is small. It is for --sampling two-stage; standard keeps all"
        },
    )
    valid_beam: int = field(
        default=1,
        metadata={
            "help": "beam size of validation's reward; 1 is greedy; 0: of one sample an input, "
            "always drawn with the same random numbers"
        },
    )
    show_samples: int = field(
        default=0,
        metadata={
            "help": "at each validation show so many of its inputs, always the same: a sample, "
            "what the model gives as validated, the reference, and the rewards of both (by part "
            "where it is a sum); in the log, in the run's record for esrl-report, and in "
            "TensorBoard or Weights & Biases where fairseq logs there"
        },
    )
    check_start: ChoiceEnum(["stop", "warn", "off"]) = field(  # type: ignore[valid-type]
        default="stop",
        metadata={
            "help": "validate the start model before the first update, and stop where it knows "
            "nothing of the task (reward near 0, or a perplexity above the vocabulary's size); "
            "warn: train nevertheless; off: do not validate it"
        },
    )
    reward_control: ChoiceEnum(["none", "constant", "shuffled"]) = field(  # type: ignore[valid-type]
        default="none",
        metadata={
            "help": "for studies: give the loss equal rewards (constant), or a batch's rewards in "
            "random order (shuffled); logs and capability keep the true ones"
        },
    )
    capability_noise: Optional[str] = field(
        default=None,
        metadata={
            "help": "for studies: make stored capabilities wrong, by Gaussian noise of this "
            "standard deviation, or by exchanging those of a batch's inputs (permuted)"
        },
    )
