"""Text files to files of words, for ``--arch hf_seq2seq``: sources, and targets beside them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.families import source_words, target_words
from esrl_fairseq.huggingface.pairs import PairWords
from esrl_fairseq.huggingface.words import make_dictionary


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of ``data`` that only sequence-to-sequence models have."""
    pairs = parser.add_argument_group("sequence-to-sequence models")
    pairs.add_argument("-s", "--source-lang", help="what the names of sources' files end with")
    pairs.add_argument("-t", "--target-lang", help="what the names of targets' files end with")
    for side, does in (("source", "reads"), ("target", "writes")):
        pairs.add_argument(
            f"--hf-{side}-lang",
            help=f"language that a multilingual model {does}, by its own code (eng_Latn, en_XX); "
            f"default: --{side}-lang, if that is one",
        )


def refuse_options(given: argparse.Namespace) -> None:
    """Refuse options of :func:`add_options` for another model.

    Raises:
        EsrlError: naming the first.
    """
    for name in ("source_lang", "target_lang", "hf_source_lang", "hf_target_lang"):
        if getattr(given, name) is not None:
            raise EsrlError(
                f"--{name.replace('_', '-')} is for sequence-to-sequence models, which that of "
                f"{given.hf_model} is not: leave it out"
            )


def check_files(files: list[Path], out: Path, taken: list[str]) -> None:
    """Refuse text files that cannot be read, or written as words under their names.

    Args:
        out: the folder of the results.
        taken: names that other results have there.

    Raises:
        EsrlError: naming the first.
    """
    names = [file.name for file in files]
    for file in files:
        if not file.is_file():
            raise EsrlError(f"there is no file {file}")
        if names.count(file.name) > 1 or file.name in taken:
            raise EsrlError(f"{file} cannot be written to {out / file.name}: rename it")
        if (out / file.name).resolve() == file.resolve():
            raise EsrlError(f"{file} would be written over itself: choose another --out")


def write_lines(file: Path, to: Path, convert: Callable[[str], str]) -> None:
    """Write each line of a text file as words."""
    with open(file, encoding="utf-8", newline="\n") as text:
        lines = [convert(line.rstrip("\r\n")) + "\n" for line in text]
    to.write_text("".join(lines), encoding="utf-8")


def write_pairs(given: argparse.Namespace) -> None:
    """Write the dictionaries of both sides, and each file's lines as words of its side.

    Args:
        given: the options of ``data``.

    Raises:
        EsrlError: an option or a file does not fit.
    """
    endings = given.source_lang, given.target_lang
    if given.chat:
        raise EsrlError("--chat is for causal LMs: leave it out")
    if None in endings or endings[0] == endings[1]:
        raise EsrlError(
            f"the model of {given.hf_model} reads one text and writes another: give -s and -t, "
            "what the names of their files end with, as to fairseq-preprocess"
        )
    names = [f"dict.{ending}.txt" for ending in endings]
    check_files(given.files, given.out, names)
    for file in given.files:
        if not file.name.endswith(tuple(f".{ending}" for ending in endings)):
            raise EsrlError(f"{file} ends neither with .{endings[0]} nor with .{endings[1]}")
    words = PairWords(given.hf_model, given.hf_source_lang, given.hf_target_lang, endings)
    # Wrong languages are refused before anything is written.
    for side in ("source", "target"):
        words.code(side)
    given.out.mkdir(parents=True, exist_ok=True)
    config = library.load_config(given.hf_model)
    for name, size in zip(names, (source_words(config), target_words(config))):
        make_dictionary(size).save(str(given.out / name))
    for file in given.files:
        source = file.name.endswith(f".{endings[0]}")
        write_lines(file, given.out / file.name, words.encode if source else words.encode_target)
