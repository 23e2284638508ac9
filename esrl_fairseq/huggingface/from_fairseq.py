"""fairseq's own Transformer as a Hugging Face folder, checked to compute the same."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from esrl_fairseq.checkpoints.reading import check_file
from esrl_fairseq.data.subwords import dictionary_words, markings
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import exported_families as families
from esrl_fairseq.huggingface import library

TASKS = ("translation", "esrl_translation")
"""Tasks whose sources end, and whose targets begin and end, with fairseq's EOS alone."""

LONGEST = 200
"""Most words of an output, as in ``fairseq-generate``."""

APART = 1e-4
"""How far a score may be from fairseq's, in parts of the largest one."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``export`` for checkpoints of fairseq's own models."""
    group = parser.add_argument_group("for a Transformer of fairseq's own")
    group.add_argument("--data", type=Path, help="folder with its dictionaries; asks for this kind")
    subwords = group.add_mutually_exclusive_group()
    subwords.add_argument(
        *("--bpe-codes",),
        type=Path,
        nargs="+",
        metavar="FILE",
        help="subword-nmt's or fastBPE's codes of the data; two files: of source and target",
    )
    subwords.add_argument(
        *("--sentencepiece",),
        type=Path,
        nargs="+",
        metavar="FILE",
        help="SentencePiece model of the data; two files: of source and target",
    )


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Whether ``arguments`` of ``export`` are for a model of fairseq's own.

    Raises:
        EsrlError: some are, and others are not.
    """
    if not arguments.data:
        if arguments.bpe_codes or arguments.sentencepiece:
            raise EsrlError(
                "--bpe-codes and --sentencepiece are for fairseq's own models: give --data, the "
                "folder with their dictionaries, too"
            )
        return False
    if not arguments.checkpoint or arguments.hf_model:
        raise EsrlError(
            "--data is for fairseq's own models: give their --checkpoint, no --hf-model"
        )
    if len(arguments.bpe_codes or arguments.sentencepiece or []) > 2:
        raise EsrlError("give one file of sub-words, or two: of source and target")
    return True


def export(arguments: argparse.Namespace) -> None:
    """Write the folder that ``arguments`` of ``export`` ask for; whole or not at all.

    Raises:
        EsrlError: no family of the library computes what the model does, or a file is none.
    """
    subwords = arguments.bpe_codes or arguments.sentencepiece or []
    kind = "sentencepiece" if arguments.sentencepiece else "subword_nmt"
    model, task = load(arguments.checkpoint, arguments.data)
    family = families.choose(model)
    found = convert(family, model)
    if hasattr(found.config, "langs"):
        found.config.langs = [task.cfg.source_lang, task.cfg.target_lang]
    tokenizer = make_tokenizer(task, subwords, kind, model) if subwords else None
    out = arguments.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        found.save_pretrained(partial)
        # What a user will load: ties, positions and all that is not stored.
        loaded = library.transformers().AutoModelForSeq2SeqLM.from_pretrained(partial)
        difference = apart(model, loaded.eval())
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for file in Path(partial).iterdir():
            out.mkdir(exist_ok=True)
            shutil.move(str(file), out / file.name)
    print(
        f"{out}: a model of the family {family.kind}, whose scores are {difference:.1e} off at most"
    )
    if tokenizer is None:
        print("without a tokenizer: give --bpe-codes or --sentencepiece for one")


def load(checkpoint: str, data: Path) -> tuple[Any, Any]:
    """Model, in float32 and eval mode, and task of a checkpoint; draws no random numbers.

    Raises:
        EsrlError: it is none of fairseq's own translation models, or ``data`` are not its data.
    """
    if not Path(checkpoint).is_file():
        raise EsrlError(f"there is no checkpoint {checkpoint}: give one of fairseq-train")
    check_file(checkpoint, "--checkpoint")
    if not data.is_dir():
        raise EsrlError(f"--data {data} is no folder: give that of fairseq-preprocess")
    own = {"data": str(data), "encoder_embed_path": None, "decoder_embed_path": None}
    try:
        with torch.random.fork_rng(devices=[]):
            (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], own)
    except EsrlError:
        raise
    except (Exception, SystemExit) as error:  # whatever other files and data lead to
        why = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        raise EsrlError(
            f"{checkpoint} cannot be loaded with the dictionaries in {data} ({why}): give a "
            "checkpoint of fairseq-train, and the --data of its training"
        ) from error
    name = getattr(cfg.task, "_name", None) or getattr(cfg.task, "task", None)
    if name not in TASKS:
        raise EsrlError(
            f"{checkpoint} was trained with --task {name}, whose sentences may begin and end in "
            f"other ways: only models of {' and '.join(TASKS)} are exported"
        )
    return model.float().eval(), task


def convert(family: families.Family, model: Any) -> Any:
    """``model`` as one of the family.

    Raises:
        EsrlError: it has weights that the family has no place for.
    """
    given = families.settings(family, model)
    config = library.transformers().AutoConfig.for_model(family.kind, **given)
    with torch.random.fork_rng(devices=[]):
        found = library.transformers().AutoModelForSeq2SeqLM.from_config(config)
    weights = families.weights(family, model, config.max_position_embeddings)
    try:
        about = found.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        why = textwrap.shorten(str(error), 200, placeholder=" …")
        raise EsrlError(f"weights do not fit the family {family.kind}: {why}") from error
    # What the library makes itself: sinusoids, and a bias of 0.
    missing = [x for x in about.missing_keys if "embed_positions" not in x and "logits" not in x]
    for names, what in ((about.unexpected_keys, "has"), (missing, "lacks")):
        if names:
            names = textwrap.shorten(", ".join(sorted(names)), 200, placeholder=" …")
            raise EsrlError(
                f"no family of the Hugging Face library computes what this model does: it {what} "
                f"{names} beside {family.kind}; CTranslate2's own converter may take it "
                "(docs/deploy.md)"
            )
    found.generation_config = search(config, families.positions(model)[1])
    return found.eval()


def search(config: Any, target_positions: int) -> Any:
    """Settings of ``generate`` that search as ``fairseq-generate`` does: outputs have a word at
    least, are ended at the same length, and hold no padding."""
    return library.transformers().GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_eos_token_id=config.eos_token_id,
        suppress_tokens=[config.pad_token_id],
        min_length=2,  # with the start symbol
        max_length=min(LONGEST, target_positions - 1) + 2,  # with that and EOS
        num_beams=5,
        length_penalty=1.0,
        early_stopping=True,
    )


@torch.no_grad()
def apart(model: Any, found: Any) -> float:
    """How far the scores of ``found`` are from those of fairseq's ``model``, on made-up sentences
    of different lengths.

    Raises:
        EsrlError: they are not the same.
    """
    source, mask, target = make_batch(model)
    own = model(source, mask.sum(1), target)[0]
    other = found(
        input_ids=source,
        attention_mask=mask,
        decoder_input_ids=target,
        use_cache=False,  # with one, FSMT reads one word at a time
    ).logits
    difference = (own - other).abs().max()
    if other.shape != own.shape or not difference <= APART * own.abs().max().clamp(min=1):
        raise EsrlError(
            f"no family of the Hugging Face library computes what this model does: as "
            f"{found.config.model_type} its scores are {float(difference):.2g} off"
        )
    return float(difference)


def make_batch(model: Any, rows: int = 6, longest: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Sources ``[rows, length]`` padded on the right, their mask, and beginnings of targets."""
    draw = torch.Generator().manual_seed(1)
    dictionary = model.decoder.dictionary
    eos, pad = dictionary.eos(), dictionary.pad()
    read, written = (min(longest, limit) for limit in families.positions(model))
    words = [
        torch.randint(dictionary.nspecial - 1, size, (rows, length), generator=draw)
        for size, length in (
            (model.encoder.embed_tokens.num_embeddings, read),
            (model.decoder.embed_tokens.num_embeddings, written),
        )
    ]
    lengths = torch.linspace(read, 1, rows).long().unsqueeze(1)
    place = torch.arange(read).unsqueeze(0)
    source = words[0].masked_fill(place == lengths - 1, eos).masked_fill(place >= lengths, pad)
    words[1][:, 0] = eos
    return source, (place < lengths).long(), words[1]


def make_tokenizer(task: Any, subwords: list[Path], kind: str, model: Any) -> Any:
    """A tokenizer that gives fairseq's ids of sources, and its text of outputs.

    Raises:
        EsrlError: a file is missing, or holds no sub-words.
    """
    library.transformers()  # one sentence where it is missing
    from esrl_fairseq.huggingface.subword_tokenizer import SubwordTokenizer

    for file in subwords:
        if not file.is_file():
            raise EsrlError(f"there is no file {file}: give the sub-words of the data")
    SubwordTokenizer.register_for_auto_class("AutoTokenizer")
    sides = [task.source_dictionary, task.target_dictionary]
    for side in sides:
        check_marks(side, kind)
    try:
        return SubwordTokenizer.of(
            [side.indices for side in sides],
            [str(file) for file in subwords],
            kind,
            model_max_length=families.positions(model)[0],
        )
    except Exception as error:  # whatever a file that is none leads to
        why = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
        raise EsrlError(f"{', '.join(map(str, subwords))} cannot be read ({why})") from error


def check_marks(dictionary: Any, kind: str) -> None:
    """Refuse sub-words of another kind than those in the dictionary.

    Raises:
        EsrlError: naming a word of it.
    """
    found = markings(dictionary_words(dictionary))
    if found and not any(marking.joined_by(kind) for marking, _ in found):
        marking, word = found[0]
        option = "--sentencepiece" if kind == "sentencepiece" else "--bpe-codes"
        raise EsrlError(
            f"{option} does not fit the dictionaries, whose sub-words are made by {marking.maker} "
            f"({word!r} is one): give the file that the data were split with"
        )
