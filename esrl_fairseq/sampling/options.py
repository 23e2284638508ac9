"""Options of stage one and of prompts, and the checks that refuse values which cannot work."""

import math
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from esrl_fairseq.checks.options import number_or_nan
from esrl_fairseq.core.schedules import neyman_counts, shrunk_variance
from esrl_fairseq.errors import EsrlError

AUTO = "auto"
"""``--elimination-ratio`` that leaves the choice to the rewards' spread."""
TEXTS = ("continuation", "whole")
"""What the reward sees of a prompt's sample."""


@dataclass
class SamplingConfig(FairseqDataclass):
    """Options of stage one, and of what inputs are compared with."""

    num_samples: int = field(
        default=8, metadata={"help": "K, the most samples of an input (at least 1)"}
    )
    min_samples: int = field(
        default=1,
        metadata={
            "help": "k_min, the fewest samples of an input; 0 skips the most capable "
            "ones, and needs a number as --elimination-ratio"
        },
    )
    capability: ChoiceEnum(["bleu", "entropy", "reward", "none"]) = field(  # type: ignore[valid-type]
        default="bleu",
        metadata={
            "help": "what tells how well the model handles an input, from the input's last visit: "
            "mean sentence BLEU of its samples, their confidence (entropy), their mean reward "
            "(which must lie in [0, 1]), or none: always K samples. Temperatures follow it where "
            "they differ, and counts where --elimination-ratio is a number; where nothing does, it "
            "needs no references and no range, and is stored only if it costs nothing"
        },
    )
    elimination_ratio: str = field(
        default=AUTO,
        metadata={
            "help": "auto: samples in proportion to the spread of an input's rewards, at most K; "
            "or beta in [0, 1]: share of the samples above k_min that is never drawn, taken from "
            "the most capable inputs first. --capability none draws K samples, whatever this says"
        },
    )
    sample_temperature: float = field(
        default=1.0,
        metadata={"help": "temperature of inputs that were not visited yet; of all by default"},
    )
    min_sample_temperature: Optional[float] = field(
        default=None,
        metadata={"help": "temperature of the most capable input (default: --sample-temperature)"},
    )
    max_sample_temperature: Optional[float] = field(
        default=None,
        metadata={"help": "temperature of the least capable input (default: --sample-temperature)"},
    )
    sample_max_len_a: float = field(
        default=1.2,
        metadata={"help": "samples end after at most a*x + b tokens, x the source's length"},
    )
    sample_max_len_b: int = field(default=10, metadata={"help": "see --sample-max-len-a"})
    sample_min_len: int = field(
        default=1, metadata={"help": "fewest tokens of a sample, EOS not counted"}
    )
    reward_references: Optional[str] = field(
        default=None,
        metadata={
            "help": "splits whose inputs can have further references, such as train,valid: text "
            "files DATA/SPLIT.SRC-TGT.TGT1, …TGT2, …, prepared as the target side, one line an "
            "input, empty where it has none; see docs/rewards.md"
        },
    )
    capability_store: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder for the capability store of a data set beyond a million samples, of "
            "which checkpoints hold the names of files alone (default: --save-dir)"
        },
    )
    accept_other_batches: bool = field(
        default=False,
        metadata={
            "help": "go on in the middle of an epoch although the data are divided into other "
            "batches than those that the run began with (another --batch-size, say): at the same "
            "share of the epoch, so that some sentences come twice in it and others not at all"
        },
    )
    compile_decoding: bool = field(
        default=False,
        metadata={
            "help": "have torch.compile make one CUDA graph of a decoding step of stage one, for "
            "fairseq's own Transformer; each new size of a batch, rounded up to powers of two, is "
            "compiled once. Not tried on a GPU yet; without one it is slower"
        },
    )
    save_dir: Optional[str] = II("checkpoint.save_dir")
    no_save: bool = II("checkpoint.no_save")


@dataclass
class PromptConfig(FairseqDataclass):
    """Options of prompts and of what the reward sees of their continuations."""

    prompt_tokens: Optional[int] = field(
        default=None,
        metadata={
            "help": "the prompt is this many tokens at the beginning of each line, the rest of the "
            "line is its reference (default: each line is a prompt as a whole, without reference)"
        },
    )
    reward_text: ChoiceEnum(list(TEXTS)) = field(  # type: ignore[valid-type]
        default="continuation",
        metadata={
            "help": "what the reward sees as hypothesis: the continuation alone, or the whole text "
            "with its prompt; the source is the prompt, either way"
        },
    )
    text_language: str = field(
        default="en", metadata={"help": "language of the text, for --reward-detokenizer"}
    )


def elimination_ratio(cfg: SamplingConfig) -> Optional[float]:
    """β of ``--elimination-ratio``; ``None`` where it is ``auto``.

    Raises:
        EsrlError: it is neither.
    """
    value = cfg.elimination_ratio  # a number where a program has set it
    if value == AUTO:
        return None
    beta = number_or_nan(value)
    if not 0 <= beta <= 1:
        raise EsrlError(
            f"--elimination-ratio is {value}, but must be {AUTO} or a number from 0 to 1"
        )
    return beta


def temperature_range(cfg: SamplingConfig) -> tuple[float, float]:
    """Temperatures of the most and of the least capable input."""
    given = cfg.min_sample_temperature, cfg.max_sample_temperature
    low, high = (cfg.sample_temperature if value is None else value for value in given)
    return low, high


def deciding_capability(cfg: SamplingConfig) -> str:
    """``--capability`` where samples or temperatures follow it, otherwise ``none``.

    What decides nothing demands nothing: neither references nor a reward in [0, 1].
    """
    by_counts = elimination_ratio(cfg) not in (None, 0) and cfg.min_samples < cfg.num_samples
    by_temperature = any(value != cfg.sample_temperature for value in temperature_range(cfg))
    return str(cfg.capability) if by_counts or by_temperature else "none"


def fewest_samples(cfg: SamplingConfig) -> int:
    """The fewest samples that an input can get."""
    beta = elimination_ratio(cfg)
    if cfg.capability == "none" or beta == 0:
        return cfg.num_samples
    if beta is not None:
        return cfg.min_samples
    least = shrunk_variance([0.0], [cfg.num_samples], 1.0)  # K equal rewards
    return int(neyman_counts(least, 1.0, cfg.num_samples, cfg.min_samples)[0])


def often_one_sample(cfg: SamplingConfig) -> bool:
    """Whether inputs of any kind can get a single sample.

    With a number as β, single samples are for the few most capable inputs alone.
    """
    by_spread = elimination_ratio(cfg) is None
    return cfg.num_samples == 1 or (by_spread and fewest_samples(cfg) == 1)


def check_places(cfg: SamplingConfig, places: int) -> None:
    """Refuse samples that must be longer than a model can write.

    Args:
        places: tokens that its decoder reads.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    if max(cfg.sample_min_len, 1) >= places:
        raise EsrlError(
            f"--sample-min-len is {cfg.sample_min_len}, but the model writes at most {places - 1} "
            "tokens and EOS: lower it, or choose a model with more places (fairseq's: "
            "--max-target-positions)"
        )


def check_sampling_options(cfg: SamplingConfig) -> None:
    """Refuse options that cannot work.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    temperature = ("sample_temperature", "min_sample_temperature", "max_sample_temperature")
    limits: dict[str, tuple[float, float]] = {
        "num_samples": (1, math.inf),
        "min_samples": (0, cfg.num_samples),
        "sample_max_len_a": (0, math.inf),
        "sample_max_len_b": (0, math.inf),
        "sample_min_len": (0, math.inf),
    }
    for name, (low, high) in limits.items():
        value = getattr(cfg, name)
        if not low <= value <= high or value == math.inf:
            upto = f"to {high:g}" if high < math.inf else "upwards"
            option = "--" + name.replace("_", "-")
            raise EsrlError(f"{option} is {value}, but must be a number from {low:g} {upto}")
    if cfg.sample_max_len_a == cfg.sample_max_len_b == 0:
        raise EsrlError(
            "--sample-max-len-a and --sample-max-len-b are both 0, which leaves no token to a "
            "sample: give one of them a positive number"
        )
    if elimination_ratio(cfg) is None and cfg.capability != "none" and cfg.min_samples == 0:
        raise EsrlError(
            f"--min-samples is 0, but --elimination-ratio {AUTO} never skips an input: give it a "
            "number, such as 0.3, or leave out --min-samples"
        )
    for name in temperature:
        value = getattr(cfg, name)
        option = "--" + name.replace("_", "-")
        if value is None:
            continue
        if not 0 < value < math.inf:
            raise EsrlError(f"{option} is {value}, but must be a positive number")
        if value != cfg.sample_temperature and cfg.capability == "none":
            raise EsrlError(
                f"{option} is {value}, but --capability none tells no input from another: all "
                "have --sample-temperature"
            )
    low, high = temperature_range(cfg)
    if low > high:
        raise EsrlError(
            f"the temperature of the most capable input is {low}, above that of the least capable "
            f"one, {high}: change --min-sample-temperature or --max-sample-temperature"
        )
