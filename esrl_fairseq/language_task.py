"""The task ``esrl_language_modeling``: decoder-only policies, which continue prompts."""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from fairseq import utils
from fairseq.data import data_utils
from fairseq.dataclass import ChoiceEnum
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import II

from esrl_fairseq.data.prompts import check_references, check_room, prompt_dataset
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling.conditioning import is_decoder_only
from esrl_fairseq.sampling.options import PromptConfig, SamplingConfig
from esrl_fairseq.sampling_task import SamplingTask

WITHOUT_EFFECT = {
    "sample_break_mode": ("none", "eos"),
    "shorten_method": ("none",),
    "output_dictionary_size": (-1,),
    "self_target": (False,),
    "past_target": (False,),
    "pad_to_fixed_length": (False,),
    "pad_to_fixed_bsz": (False,),
    "reward_references": (None,),
}
"""Options of language modeling and sampling, and the values that prompts allow."""


@dataclass
class EsrlLanguageModelingConfig(PromptConfig, SamplingConfig, LanguageModelingConfig):
    """The language modeling task's options, and ours."""

    # Some of SamplingConfig's have defaults for translation.
    capability: ChoiceEnum(["bleu", "entropy", "reward", "none"]) = field(  # type: ignore[valid-type]
        default="reward",
        metadata={
            "help": "what tells how well the model handles a prompt, from the prompt's last visit: "
            "mean reward of its samples (which must lie in [0, 1] where samples or temperatures "
            "follow it), their confidence (entropy), their mean sentence BLEU, or none: always K "
            "samples"
        },
    )
    sample_max_len_a: float = field(
        default=0.0,
        metadata={
            "help": "samples end after at most a*x + b tokens, x the prompt's length with its "
            "start symbol"
        },
    )
    sample_max_len_b: int = field(default=50, metadata={"help": "see --sample-max-len-a"})
    train_subset: str = II("dataset.train_subset")


def check_language_options(cfg: EsrlLanguageModelingConfig) -> None:
    """Refuse options that cannot work.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    if cfg.prompt_tokens is not None and cfg.prompt_tokens < 1:
        raise EsrlError(f"--prompt-tokens is {cfg.prompt_tokens}, but must be at least 1")
    for name, allowed in WITHOUT_EFFECT.items():
        if getattr(cfg, name) not in allowed:
            raise EsrlError(
                f"--{name.replace('_', '-')} does not go with --task esrl_language_modeling, where "
                "each line of the data is a prompt: leave it out"
            )


class PromptTask(LanguageModelingTask):
    """fairseq's language modeling, on data sets of prompts.

    Each line is an input. Its prompt are its first ``--prompt-tokens`` words, or all of them.
    """

    @classmethod
    def setup_dictionary(cls, args: Any, **kwargs: Any) -> Any:
        path = os.path.join(utils.split_paths(args.data)[0], "dict.txt")
        if not os.path.exists(path):
            raise EsrlError(
                f"there is no dictionary {path}: binarize the prompts with fairseq-preprocess "
                "--only-source --srcdict, the dictionary that the model was trained with"
            )
        return super().setup_dictionary(args, **kwargs)

    @property
    def start(self) -> int:
        """Id of what the model reads first, as in fairseq's generation with language models."""
        dictionary = self.dictionary
        return dictionary.bos() if self.args.add_bos_token else dictionary.eos()

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        # fairseq's own asks for targets, which models with an encoder do not know.
        model = super(LanguageModelingTask, self).build_model(args, from_checkpoint)
        if not is_decoder_only(model):
            raise EsrlError(
                "--task esrl_language_modeling trains language models, which "
                f"{type(model).__name__} is not: choose an --arch such as transformer_lm, or "
                "--task esrl_translation"
            )
        # Convolutional language models read any length.
        self.places = int(min(model.max_positions(), sys.maxsize))
        return model

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Prompts, and the rests of their lines as targets."""
        paths = utils.split_paths(self.args.data)
        prefix = os.path.join(paths[(epoch - 1) % len(paths)], split)
        lines = data_utils.load_indexed_dataset(
            prefix, self.dictionary, self.args.dataset_impl, combine=combine
        )
        if lines is None:
            raise EsrlError(
                f"there are no prompts {prefix}: make them with fairseq-preprocess --only-source"
            )
        shuffle = split == self.args.train_subset
        self.datasets[split] = prompt_dataset(
            lines, self.dictionary, self.args.prompt_tokens, self.start, shuffle
        )


@register_task("esrl_language_modeling", dataclass=EsrlLanguageModelingConfig)
class EsrlLanguageModelingTask(SamplingTask, PromptTask):
    """Prompts with stage-one sampling of continuations, a capability store and RL state."""

    cfg: EsrlLanguageModelingConfig
    mend_references = "give --prompt-tokens, so that the rest of each line is its reference"
    mend_empty_lines = "leave out these lines"
    mend_empty_references = "leave out these lines, or give fewer --prompt-tokens"

    def __init__(self, cfg: EsrlLanguageModelingConfig, *dictionaries: Any, **keywords: Any):
        super().__init__(cfg, *dictionaries, **keywords)
        self.cfg = cfg  # fairseq's task knows it as args
        check_language_options(cfg)
        self.start_sampling(cfg)
        self.reward_text = cfg.reward_text

    @property
    def languages(self) -> tuple[str, str]:
        return self.cfg.text_language, self.cfg.text_language

    @property
    def file_endings(self) -> tuple[str, str]:
        return "", ""  # one file holds prompts and what follows

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if self.trained_by_reward:
            least = max(self.cfg.sample_min_len, 1)
            name = self.datasets[split].split
            check_room(self.datasets[split], name, self.places, least)
            check_references(self.datasets[split], name, self.never)

    def best_hypotheses(self, model: Any, sample: dict[str, Any], beam: int) -> list[list[int]]:
        """Tokens that beam search finds for each prompt, which is not among them.

        fairseq's generator takes one limit for all rows, so that prompts of one length take turns.
        """
        sampler, lengths = self.build_sampler(model), sample["net_input"]["src_lengths"]
        best: list[list[int]] = [[] for _ in lengths]
        for length in lengths.unique().tolist():
            places = (lengths == length).nonzero().squeeze(1)
            limit = int(sampler.length_limits(lengths[places], lengths[places])[0])
            given = length - 1
            generator = SequenceGenerator(
                [model],
                self.target_dictionary,
                beam_size=beam,
                max_len_a=0,
                max_len_b=given + limit,
                min_len=given + self.options.sample_min_len,
            )
            part = {
                "id": sample["id"][places],
                "net_input": {
                    "src_tokens": sample["net_input"]["src_tokens"][places, :length],
                    "src_lengths": lengths[places],
                },
            }
            found = self.inference_step(generator, [model], part)
            for place, hypotheses in zip(places.tolist(), found):
                best[place] = hypotheses[0]["tokens"][given:].tolist()
        return best
