"""What language models write behind the test prompts: reward, judge, KL, perplexity, repetition.

Every model draws as many continuations of each prompt with the same random numbers, at
temperature 1.

reward      mean of the reward model that training raised
judge       mean of one that saw other sentences, and that no policy was trained on
KL          log p − log p_start of a sample, mean: nats a continuation, KL(p ‖ p_start)
perplexity  of the samples under the start model, a token (EOS included)
distinct-2  share of different pairs of words among all that were written
words       of a continuation, mean
"""

import argparse
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils

import esrl_fairseq  # noqa: F401 (fairseq then loads checkpoints)
from esrl_fairseq.generation import RowSampler
from esrl_fairseq.language_task import EsrlLanguageModelingConfig, EsrlLanguageModelingTask
from esrl_fairseq.rescoring import rescore
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.scoring import Scorer

SEED = 1
BATCH = 64
SHOWN = 3  # samples of each model


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
    model: Any, start: Any, task: Any, scorers: dict[str, Scorer], length: int, samples: int
) -> tuple[dict[str, float], list[str]]:
    """Figures of ``model``, and some of what it wrote."""
    dictionary = task.target_dictionary
    sampler = RowSampler([model], dictionary, max_len_a=0, max_len_b=length, min_len=1)
    found: dict[str, list[Any]] = {name: [] for name in (*scorers, "ratio", "start", "tokens")}
    texts, shown = [], []
    for batch in batches(task.datasets["test"]):
        inputs = len(batch["id"])
        counts, temperature = np.full(inputs, samples), np.ones(inputs, np.float32)
        rows = sampler.sample_rows(batch, counts, temperature, SEED)
        given = (batch["net_input"], rows, dictionary.pad(), dictionary.eos(), 1)
        own, reference = rescore(model, *given), rescore(start, *given)
        found["ratio"] += (own.log_probs - reference.log_probs).tolist()
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
    figures = {name: float(np.mean(found[name])) for name in scorers}
    figures["KL"] = float(np.mean(found["ratio"]))
    figures["perplexity"] = float(np.exp(-np.sum(found["start"]) / np.sum(found["tokens"])))
    figures["distinct-2"] = distinct(texts, 2)
    figures["words"] = float(np.mean([len(text.split()) for text in texts]))
    return figures, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="binarized prompts")
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT, the start model first")
    parser.add_argument("--reward", required=True, help="checkpoint of the reward model")
    parser.add_argument("--judge", required=True, help="checkpoint of the other reward model")
    parser.add_argument("--length", type=int, required=True, help="most tokens of a continuation")
    parser.add_argument("--samples", type=int, default=2, help="of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(1)

    cfg = EsrlLanguageModelingConfig(data=args.data, dataset_impl="mmap")
    task = EsrlLanguageModelingTask.setup_task(cfg)
    task.load_dataset("test")
    scorers = {
        name: Scorer(build_reward("model", model=path), task, "subword_nmt", None)
        for name, path in (("reward", args.reward), ("judge", args.judge))
    }
    named = dict(item.split("=", 1) for item in args.models)
    start, table, texts = None, {}, {}
    for name, path in named.items():
        model = load(path, task)
        start = start or model
        table[name], texts[name] = evaluate(model, start, task, scorers, args.length, args.samples)
    columns = list(next(iter(table.values())))
    width = max(map(len, table))
    print(f"> {'':{width}}" + "".join(f"{column:>12}" for column in columns))
    for name, figures in table.items():
        print(f"> {name:{width}}" + "".join(f"{figures[column]:12.3f}" for column in columns))
    for name, lines in texts.items():
        for line in lines:
            print(f"> {name}: {line}")


if __name__ == "__main__":
    main()
