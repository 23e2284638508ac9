"""Choose among a run's models on the validation set, and translate and score the test set.

Every model is translated by fairseq-generate, in this process, as recipes/lib.sh does it: sub-words
joined, detokenised, and scored against the text as it was before any tokenisation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import re
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from fairseq_cli import generate
from metrics import METRICS
from sacremoses import MosesDetokenizer

ROOT = Path(__file__).resolve().parents[2]
SEARCHES = {"beam5": 5, "greedy": 1}

Row = dict[str, Any]


def main() -> None:
    """Write ``out/`` and ``evaluation.json`` of one run, and remove the models not chosen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder with train.json and train/")
    parser.add_argument("--pair", type=Path, required=True, help="with data-bin/ and clean/")
    parser.add_argument("--source", required=True, help="language")
    parser.add_argument("--target", required=True, help="language")
    parser.add_argument("--language", required=True, help="of the target's words")
    parser.add_argument("--metric", required=True, choices=METRICS)
    parser.add_argument("generate", nargs="*", help="options of fairseq-generate, after --")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)  # fairseq's own call has no effect then

    found = evaluate(options)
    part = options.run / "evaluation.part"
    part.write_text(json.dumps(found, indent=1))
    part.replace(options.run / "evaluation.json")
    kept = {f"checkpoint_{result['updates']}.pt" for result in found["results"].values()}
    for checkpoint in (options.run / "train").glob("*.pt"):
        if checkpoint.name not in kept:
            checkpoint.unlink()


def evaluate(options: argparse.Namespace) -> Row:
    """Scores on valid of every model, and on test of those that are results.

    Returns:
        ``valid``: score of each model's greedy output. ``results``: scores by search of ``time``,
        the best on valid, and ``updates``.
    """
    run, metric = options.run, METRICS[options.metric]()
    key = metric.key
    training = json.loads((run / "train.json").read_text())
    clean = options.pair / "clean"
    references = {
        split: metric.references(clean / f"{split}.{options.target}") for split in ("valid", "test")
    }

    @cache
    def output(updates: int, split: str, beam: int) -> list[str]:
        texts = translate(options, run / "train" / f"checkpoint_{updates}.pt", split, beam)
        if len(texts) != len(references[split]):
            sys.exit(f"error: {len(texts)} outputs for the {len(references[split])} of {split}")
        return texts

    def on_valid(state: Row) -> Row:
        scores = metric.scores(output(state["updates"], "valid", 1), references["valid"])
        return {**state, key: scores[key]}

    def on_test(name: str, state: Row) -> Row:
        result: Row = {"updates": state["updates"], "seconds": state["seconds"]}
        result[f"valid_{key}"] = state[key]
        for search, beam in SEARCHES.items():
            texts = output(state["updates"], "test", beam)
            file = run / "out" / f"{name}.{search}"
            file.parent.mkdir(exist_ok=True)
            Path(f"{file}.txt").write_text("".join(f"{t}\n" for t in texts), encoding="utf-8")
            np.save(f"{file}.npy", metric.counts(texts, references["test"]))
            result[search] = metric.scores(texts, references["test"])
        return result

    valid = [on_valid(state) for state in training["candidates"]]
    results = {}
    if valid:  # the first of equals
        results["time"] = on_test("time", max(valid, key=lambda state: state[key]))
    if training["equal_updates"]:
        results["updates"] = on_test("updates", on_valid(training["equal_updates"]))
    return {"valid": valid, "results": results, "signatures": metric.signatures()}


def translate(options: argparse.Namespace, checkpoint: Path, split: str, beam: int) -> list[str]:
    """Detokenised output for a split, in the data's order."""
    data, user_dir = options.pair / "data-bin", ROOT / "esrl_fairseq"
    arguments = [data, "--user-dir", user_dir, "--path", checkpoint, "--beam", beam]
    arguments += ["--source-lang", options.source, "--target-lang", options.target]
    arguments += ["--gen-subset", split, *options.generate]
    arguments += ["--max-tokens", 8000, "--required-batch-size-multiple", 1, "--remove-bpe"]
    arguments += ["--log-format", "none", "--num-workers", 0]
    sys.argv = ["fairseq-generate", *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        generate.cli_main()
    # H-<number>\t<score>\t<text>, in an order that batches chose
    lines = re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", printed.getvalue(), flags=re.MULTILINE)
    detokenize = partial(MosesDetokenizer(lang=options.language).detokenize, return_str=True)
    return [detokenize(text.split()) for _, text in sorted(lines, key=lambda line: int(line[0]))]


if __name__ == "__main__":
    main()
