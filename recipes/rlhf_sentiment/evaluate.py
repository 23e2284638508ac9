"""What language models write behind the test prompts: reward, judge, KL, perplexity, repetition.

Every model draws as many continuations of each prompt with the same random numbers, at
temperature 1. A method's figures are means over its seeds, ± their standard deviation.

objective   reward − KL weight · KL, what training raised
reward      mean of the reward model
judge       mean of one that saw other sentences, and that no policy was trained on
KL          log p − log p_start of a sample, mean: nats a continuation, KL(p ‖ p_start)
perplexity  of the samples under the start model, a token (EOS included)
distinct-2  share of different pairs of words among all that were written
words       of a continuation, mean

Differences come with the middle 95% of a bootstrap over prompts, seeds averaged in each resample.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils

import esrl_fairseq  # noqa: F401 (fairseq then loads checkpoints)
from esrl_fairseq.language_task import EsrlLanguageModelingConfig, EsrlLanguageModelingTask
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.rewards import Reward, build_reward
from esrl_fairseq.rewards.scorer import Scorer
from esrl_fairseq.sampling.generation import RowSampler
from recipes.intervals import interval

SEED = 1
BATCH = 64
SHOWN = 3  # samples of each method
COLUMNS = ("objective", "reward", "judge", "KL", "perplexity", "distinct-2", "words")
COMPARED = ("objective", "reward", "judge", "KL")


def load(path: str, task: Any) -> Any:
    (model,), _ = checkpoint_utils.load_model_ensemble([path], task=task)
    return model.eval()


def batches(dataset: Any) -> list[dict[str, Any]]:
    starts = range(0, len(dataset), BATCH)
    ids = [range(start, min(start + BATCH, len(dataset))) for start in starts]
    return [dataset.collater([dataset[i] for i in part]) for part in ids]


def distinct(texts: list[str], n: int) -> float:
    """Share of different n-grams among all."""
    grams = [g for text in texts for g in zip(*(text.split()[i:] for i in range(n)))]
    return len(set(grams)) / max(len(grams), 1)


@torch.no_grad()
def evaluate(
    model: Any, start: Any, task: Any, scorers: dict[str, Scorer], args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], dict[str, float], list[str]]:
    """Of one model: values of each prompt by COMPARED, figures by COLUMNS, and some samples."""
    dictionary = task.target_dictionary
    sampler = RowSampler([model], dictionary, max_len_a=0, max_len_b=args.length, min_len=1)
    found: dict[str, Any] = {name: [] for name in (*COMPARED, "start", "tokens")}
    texts, shown = [], []
    for batch in batches(task.datasets["test"]):
        inputs = len(batch["id"])
        counts, temperature = np.full(inputs, args.samples), np.ones(inputs, np.float32)
        rows = sampler.sample_rows(batch, counts, temperature, SEED)
        given = (batch["net_input"], rows, dictionary.pad(), dictionary.eos(), 1)
        own, reference = rescore(model, *given), rescore(start, *given)
        found["KL"] += (own.log_probs - reference.log_probs).tolist()
        found["start"] += reference.log_probs.tolist()
        found["tokens"] += reference.lengths.tolist()
        tokens, row_input = rows.tokens.tolist(), rows.input_index.tolist()
        for name, scorer in scorers.items():
            found[name] += scorer.score(batch, tokens, row_input).rewards.tolist()
        written = scorer.hypotheses(tokens)
        texts += written
        if len(shown) < SHOWN:
            prompts = scorer.sources(batch)
            first = dict(zip(reversed(row_input), reversed(written)))
            shown += [f"{prompts[i]} | {first[i]}" for i in range(min(SHOWN, inputs))]
    # Rows of a prompt follow each other, as many of each.
    found["objective"] = np.array(found["reward"]) - args.kl_weight * np.array(found["KL"])
    values = {name: np.array(found[name]).reshape(-1, args.samples).mean(1) for name in COMPARED}
    figures = {name: float(values[name].mean()) for name in COMPARED}
    figures["perplexity"] = float(np.exp(-np.sum(found["start"]) / np.sum(found["tokens"])))
    figures["distinct-2"] = distinct(texts, 2)
    figures["words"] = float(np.mean([len(text.split()) for text in texts]))
    return values, figures, shown


def accuracy(reward: Reward, folder: Path) -> float:
    """How often the score of a test sentence is on its side of 1/2."""
    prompts, texts, ratings = (
        (folder / f"test.{ending}").read_text(encoding="utf-8").splitlines()
        for ending in ("prompt", "continuation", "ratings")
    )
    scores = np.asarray(reward(prompts, texts))
    return float(((scores > 0.5) == (np.array(ratings, float) > 0.5)).mean())


def print_table(figures: dict[str, list[dict[str, float]]]) -> None:
    """A row a method: mean over its seeds, ± standard deviation."""
    width = max(map(len, figures))
    print(f"> {'':{width}}  n" + "".join(f"{column:>18}" for column in COLUMNS))
    for name, found in figures.items():
        cells = []
        for column in COLUMNS:
            values = [one[column] for one in found]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        print(f"> {name:{width}} {len(found):2}" + "".join(f"{cell:>18}" for cell in cells))


def print_differences(values: dict[str, dict[str, np.ndarray]], one: str) -> None:
    """Of method ``one`` to all others."""
    for name in values:
        if name == one:
            continue
        parts = []
        for column in COMPARED:
            difference = values[one][column] - values[name][column]
            low, high = interval(difference, np.arange(len(difference)))
            parts.append(f"{column} {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        print(f"> {one} - {name}: " + ", ".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="binarized prompts")
    parser.add_argument(
        "models",
        nargs="+",
        help="the start's checkpoint, and NAME=FOLDER[,FOLDER…], a seed each, with policy.pt and "
        "train.json",
    )
    parser.add_argument("--reward", required=True, help="checkpoint of the reward model")
    parser.add_argument("--judge", required=True, help="checkpoint of the other reward model")
    parser.add_argument("--judged", type=Path, required=True, help="folder of test sentences")
    parser.add_argument("--length", type=int, required=True, help="most tokens of a continuation")
    parser.add_argument("--kl-weight", type=float, required=True, help="of training")
    parser.add_argument("--samples", type=int, default=2, help="of each prompt")
    parser.add_argument(
        "--compare", nargs="*", default=[], help="methods whose differences to the others are shown"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)

    cfg = EsrlLanguageModelingConfig(data=args.data, dataset_impl="mmap")
    task = EsrlLanguageModelingTask.setup_task(cfg)
    task.load_dataset("test")
    rewards = {
        name: build_reward("model", model=path)
        for name, path in (("reward", args.reward), ("judge", args.judge))
    }
    scorers = {name: Scorer(reward, task, "subword_nmt", None) for name, reward in rewards.items()}
    start, *methods = args.models
    named = {"start": [Path(start)]}
    for name, folders in (item.split("=", 1) for item in methods):
        named[name] = [Path(folder) / "policy.pt" for folder in folders.split(",")]
    start, values, figures, texts = load(start, task), {}, {}, {}
    for name, paths in named.items():
        found = []
        for path in paths:
            model = load(str(path), task)
            found.append(evaluate(model, start, task, scorers, args))
            print(f"{path}: {found[-1][1]}", flush=True)
        values[name] = {c: np.mean([own[c] for own, _, _ in found], axis=0) for c in COMPARED}
        figures[name] = [own for _, own, _ in found]
        texts[name] = found[0][2]
    for name, reward in rewards.items():
        print(f"> {name}: {accuracy(reward, args.judged):.1%} of the test sentences rated rightly")
    print_table(figures)
    for name, paths in list(named.items())[1:]:
        trained = [json.loads((path.parent / "train.json").read_text()) for path in paths]
        updates, peak = ([row[key] or 0 for row in trained] for key in ("updates", "peak_mb"))
        print(f"> {name}: {np.mean(updates):.0f} updates, at most {max(peak):,.0f} MB")
    for name in args.compare:
        print_differences(values, name)
    for name, lines in texts.items():
        for line in lines:
            print(f"> {name}: {line}")


if __name__ == "__main__":
    main()
