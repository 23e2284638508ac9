"""``python -m esrl_fairseq``: the options of criteria, tasks and models, with help.

``fairseq-train --help`` ends before fairseq adds them. With ``--user-dir``: this package's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks.translation import TranslationConfig

from esrl_fairseq.huggingface.bpe import HfTokenizerConfig
from esrl_fairseq.huggingface.model import HfCausalLMConfig
from esrl_fairseq.huggingface.seq2seq import HfSeq2SeqConfig
from esrl_fairseq.language_task import EsrlLanguageModelingConfig
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.reward_models.criterion import PreferenceConfig
from esrl_fairseq.reward_models.task import SubwordConfig
from esrl_fairseq.sampling.options import PromptConfig, SamplingConfig
from esrl_fairseq.task import LanguageTagsConfig


def make_parser() -> argparse.ArgumentParser:
    """A parser of these options alone, in groups."""
    parser = argparse.ArgumentParser(
        "fairseq-train --user-dir esrl_fairseq --task esrl_translation --criterion esrl",
        usage="%(prog)s …",
        add_help=False,
        formatter_class=_Formatter,
    )
    groups = {
        "criterion esrl": EsrlCriterionConfig(),
        "task esrl_translation": SamplingConfig(),
        f"task esrl_language_modeling, as esrl_translation, with {other_defaults()}; and": (
            PromptConfig()
        ),
        "task esrl_translation_from_pretrained_bart, as esrl_translation; and": (
            LanguageTagsConfig()
        ),
        "task esrl_reward_model": SubwordConfig(),
        "criterion esrl_preference, which trains a reward model": PreferenceConfig(),
        "model hf_causal_lm (--arch), a causal LM of Hugging Face": HfCausalLMConfig(),
        "model hf_seq2seq (--arch), a sequence-to-sequence model of Hugging Face": (
            HfSeq2SeqConfig()
        ),
        "--bpe hf_tokenizer, its text": HfTokenizerConfig(),
        "task esrl_translation, as fairseq's translation": TranslationConfig(),
    }
    for name, config in groups.items():
        gen_parser_from_dataclass(parser.add_argument_group(name), config)
    return parser


def other_defaults() -> str:
    """What differs between the tasks in the options that they share."""
    ours: Any = EsrlLanguageModelingConfig()
    return ", ".join(
        f"--{name.replace('_', '-')} {getattr(ours, name)}"
        for name, value in vars(SamplingConfig()).items()
        if getattr(ours, name) != value
    )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default, unless there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(words: list[str]) -> None:
    """Print the options, or the folder that fairseq's ``--user-dir`` wants.

    Args:
        words: of the command line; it takes none but ``--user-dir`` or a call for help.
    """
    if words == ["--user-dir"]:
        print(Path(__file__).resolve().parent)
        return
    if words and words not in (["-h"], ["--help"]):
        argparse.ArgumentParser("python -m esrl_fairseq").error(
            "it prints the options of fairseq-train, or with --user-dir alone the folder for "
            f"fairseq's --user-dir, but was given {' '.join(words)}: give options to fairseq-train "
            "--user-dir esrl_fairseq"
        )
    make_parser().print_help()


if __name__ == "__main__":
    main(sys.argv[1:])
