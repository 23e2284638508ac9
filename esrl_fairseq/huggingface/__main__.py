"""``python -m esrl_fairseq.huggingface``: text to data for ``--arch hf_causal_lm`` and
``hf_seq2seq``, and models back to Hugging Face folders."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from esrl_fairseq.checkpoints.card import copy_to
from esrl_fairseq.checkpoints.reading import check_file
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import adapters, from_fairseq, library
from esrl_fairseq.huggingface.bpe import is_seq2seq
from esrl_fairseq.huggingface.families import fixed_weights
from esrl_fairseq.huggingface.pair_data import (
    add_options,
    check_files,
    refuse_options,
    write_lines,
    write_pairs,
)
from esrl_fairseq.huggingface.words import Words, make_dictionary

WEIGHTS = "decoder.model."
"""What fairseq's checkpoints put before the names of the model's own weights."""
OURS = " or ".join(kind.arch for kind in library.KINDS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m esrl_fairseq.huggingface")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser(
        "data", help="text files to files of tokens and their dict.txt, for fairseq-preprocess"
    )
    data.add_argument("--hf-model", required=True, help="a folder, a GGUF file or a hub name")
    data.add_argument("--out", type=Path, required=True, help="folder of the results")
    data.add_argument(
        "--chat", action="store_true", help="each line is what a user says, and asks for an answer"
    )
    add_options(data)
    data.add_argument("files", type=Path, nargs="+", help="texts, a prompt or a sentence a line")
    export = commands.add_parser("export", help="a trained model as a Hugging Face folder")
    export.add_argument("--checkpoint", help="of fairseq; without one, the model as it was")
    export.add_argument("--hf-model", help="default: that of the checkpoint's training")
    export.add_argument("--out", type=Path, required=True, help="folder of the result")
    from_fairseq.add_options(export)
    return parser


def write_data(where: str, files: list[Path], out: Path, chat: bool) -> None:
    """Write ``dict.txt`` and for each file one of the same name, its lines as words.

    Raises:
        EsrlError: a file is missing, or two have one name.
    """
    check_files(files, out, ["dict.txt"])
    words = Words(where)
    out.mkdir(parents=True, exist_ok=True)
    make_dictionary(library.vocabulary_size(where)).save(str(out / "dict.txt"))
    for file in files:
        write_lines(file, out / file.name, words.chat if chat else words.encode)


def export_model(checkpoint: str | None, where: str | None, out: Path) -> None:
    """Write the model at ``where``, with the weights of ``checkpoint``, and its tokenizer.

    Raises:
        EsrlError: the checkpoint is none of ours, or ``out`` is not empty.
    """
    check_out(out)
    state: dict[str, Any] = {}
    if checkpoint is not None:
        state, options = read_checkpoint(checkpoint)
        where = where or str(options["hf_model"])
    if not where:
        raise EsrlError("give --checkpoint, --hf-model or both")
    model = library.load_model(where, kind=library.kind_of(where))
    if adapters.ADAPTED in state:
        options = {**vars(adapters.LoraConfig()), **options}
        adapters.merge(model, state, argparse.Namespace(**options), str(checkpoint), where)
    elif state:
        fixed = {name: model.get_parameter(name).clone() for name in fixed_weights(model)}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise EsrlError(
                f"{checkpoint} was trained from another model than {where}: give its --hf-model"
            ) from error
        if not all(torch.equal(model.get_parameter(name), x) for name, x in fixed.items()):
            raise EsrlError(
                f"{checkpoint} has trained positions, which a {model.config.model_type} folder "
                "cannot hold (an older version of this package did not leave them fixed): train "
                "again"
            )
    model.save_pretrained(out)
    library.load_tokenizer(where).save_pretrained(out)


def check_out(out: Path) -> None:
    """Refuse a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EsrlError(f"{out} is not an empty folder: choose another --out")


def read_checkpoint(path: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The model's own weights by their names, and the options of its architecture, ``hf_model``
    among them: what training started from.

    Raises:
        EsrlError: it is no checkpoint of ``--arch hf_causal_lm`` or ``hf_seq2seq``.
    """
    if not Path(path).is_file():
        raise EsrlError(f"there is no checkpoint {path}: give one of fairseq-train")
    check_file(path, "--checkpoint")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights, options = dict(found["model"]), found["cfg"]["model"]
    except Exception as error:  # whatever a file that is no checkpoint leads to
        raise EsrlError(
            f"{path} cannot be read as a checkpoint of --arch {OURS} "
            f"({type(error).__name__}): give one of fairseq-train"
        ) from error
    options = options if isinstance(options, Mapping) else vars(options)  # older models' own
    if not options.get("hf_model"):
        raise EsrlError(
            f"{path} is a checkpoint of --arch {options.get('arch') or options.get('_name')}, "
            f"which is no model of the Hugging Face library: give one of --arch {OURS}, or, for a "
            "Transformer of fairseq's own, --data with its dictionaries"
        )
    return {name.removeprefix(WEIGHTS): x for name, x in weights.items()}, options


def main() -> None:
    arguments = make_parser().parse_args()
    if arguments.command == "data" and is_seq2seq(arguments.hf_model):
        write_pairs(arguments)
    elif arguments.command == "data":
        refuse_options(arguments)
        write_data(arguments.hf_model, arguments.files, arguments.out, arguments.chat)
    elif from_fairseq.is_asked_for(arguments):
        check_out(arguments.out)
        from_fairseq.export(arguments)
        copy_to(arguments.checkpoint, arguments.out)
    else:
        export_model(arguments.checkpoint, arguments.hf_model, arguments.out)
        if arguments.checkpoint:
            copy_to(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
