"""Rewards against their reference libraries, and the reward's share of an update.

One row a reward, setting and K. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import sacrebleu
from methods import make_bench, run_update
from workload import Workload, workloads

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, command_line_options, reward_names, score_rows
from esrl_fairseq.rewards.bleu import SMOOTH_METHODS, TOKENIZERS
from esrl_fairseq.rewards.comet import checkpoint_file

COLUMNS = (
    "reward", "setting", "k", "pairs", "us_per_pair", "reference", "reference_us", "speedup",
    "largest_difference", "update_share", "reason",
)  # fmt: skip
NOISE = 0.4
"""Share of a reference's words that are replaced or dropped in a hypothesis."""
NEURAL = ("bertscore", "comet", "hf-reward", "model", "sentence-embedding")
Pairwise = Callable[[str, str], float]
Pairs = tuple[list[str], list[str], list[int]]  # references, hypotheses, input of each


def main() -> None:
    """Every reward on pairs, then inside of updates."""
    parser = common.make_parser(__doc__, k=(8,))
    add = parser.add_argument
    add("--rewards", nargs="+", default=reward_names(), help="any names that --reward takes")
    add("--tokenize", nargs="+", choices=TOKENIZERS, default=["13a", "none"], help="of bleu")
    add("--reward-model", help="folder or hub name, for rewards that need a model")
    add("--reward-options", help="as fairseq-train's, of a reward that needs a model")
    add("--smoothing", nargs="+", choices=SMOOTH_METHODS, default=["exp"], help="of bleu")
    add("--max-sampled-tokens", type=int, default=0, help="as in training")
    options = parser.parse_args()
    common.check_options(options)
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for work in workloads(options):
        for k in options.k:
            pairs = make_pairs(work, k, options.seed)
            for name in options.rewards:
                for setting in settings(name, options):
                    rows.append(on_pairs(name, setting, k, pairs, options.rounds))
                    common.save(rows, head, options.json)
            rows.append(in_update(work, k, options))
    common.finish(rows, head, COLUMNS, options.json)


def settings(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The options to measure a reward with."""
    if name in NEURAL:
        given = (options.reward_options, options.reward_model, options.device)
        return [command_line_options(name, *given)[name]]
    if name == "language-gate":
        return [{"language": "en"}]
    if name != "bleu":
        return [{}]
    return [
        {"tokenize": tokenize, "smooth_method": smoothing}
        for tokenize in options.tokenize
        for smoothing in options.smoothing
    ]


def sacrebleu_pairwise(metric: Any) -> Pairwise:
    """sacrebleu's sentence score in [0, 1]."""
    return lambda hypothesis, reference: metric.sentence_score(hypothesis, [reference]).score / 100


def ter_pairwise(setting: dict[str, str]) -> Pairwise:
    """sacrebleu's TER, turned round as the reward does it."""
    rate = sacrebleu_pairwise(sacrebleu.TER(**setting))
    return lambda hypothesis, reference: max(0.0, 1 - rate(hypothesis, reference))


def rouge_pairwise(*variants: str) -> Callable[[dict[str, str]], Pairwise]:
    """Mean F1 of rouge-score's variants."""

    def make(setting: dict[str, str]) -> Pairwise:
        from rouge_score.rouge_scorer import RougeScorer

        score = RougeScorer(variants, use_stemmer=True).score
        return lambda hypothesis, reference: float(
            np.mean([value.fmeasure for value in score(reference, hypothesis).values()])
        )

    return make


def embedding_pairwise(setting: dict[str, str]) -> Pairwise:
    """sentence-transformers' cosine, brought to [0, 1] as the reward does it."""
    from sentence_transformers import SentenceTransformer, util

    encode = SentenceTransformer(setting["model"], device=setting["device"]).encode
    return lambda hypothesis, reference: (
        1 + float(util.cos_sim(encode(hypothesis), encode(reference)))
    ) / 2  # fmt: skip


def bertscore_pairwise(setting: dict[str, Any]) -> Pairwise:
    """bert-score's F1."""
    from bert_score import BERTScorer

    setting = dict(setting)
    scorer = BERTScorer(model_type=setting.pop("model", None), **setting)
    return lambda hypothesis, reference: float(scorer.score([hypothesis], [reference])[2])


def comet_pairwise(setting: dict[str, Any]) -> Pairwise:
    """COMET's score with the reference as source, too, as `on_pairs` asks ours."""
    import comet

    model = comet.load_from_checkpoint(checkpoint_file(setting["model"]))

    def score(hypothesis: str, reference: str) -> float:
        sample = {"src": reference, "mt": hypothesis, "ref": reference}
        found = model.predict([sample], batch_size=1, gpus=0, progress_bar=False)
        return float(found["scores"][0])

    return score


def classifier_pairwise(setting: dict[str, Any]) -> Pairwise:
    """The probability by transformers' pipeline, of the label if there are several."""
    from transformers import pipeline

    classify = pipeline("text-classification", setting["model"], device=setting["device"])
    label = setting.get("label")
    label = classify.model.config.id2label.get(label, label)  # given by number, perhaps

    def score(hypothesis: str, reference: str) -> float:
        found = classify({"text": reference, "text_pair": hypothesis}, top_k=None)
        return next(row["score"] for row in found if label in (None, row["label"]))

    return score


# reward -> (library, maker of its function of one hypothesis and one reference)
REFERENCES: dict[str, tuple[str, Callable[[dict[str, Any]], Pairwise]]] = {
    "bleu": (
        "sacrebleu",
        lambda setting: sacrebleu_pairwise(sacrebleu.BLEU(effective_order=True, **setting)),
    ),
    "chrf": ("sacrebleu", lambda setting: sacrebleu_pairwise(sacrebleu.CHRF(**setting))),
    "ter": ("sacrebleu", ter_pairwise),
    "rouge": ("rouge-score", rouge_pairwise("rouge1", "rouge2", "rougeL")),
    **{
        name: ("rouge-score", rouge_pairwise(name))
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    },
    "sentence-embedding": ("sentence-transformers", embedding_pairwise),
    "bertscore": ("bert-score", bertscore_pairwise),
    "comet": ("unbabel-comet", comet_pairwise),
    "hf-reward": ("transformers", classifier_pairwise),
}


def on_pairs(name: str, setting: dict[str, Any], k: int, pairs: Pairs, rounds: int) -> common.Row:
    """Microseconds a pair of ours and of the library, and how far their values differ."""
    references, hypotheses, index = pairs
    try:
        reward = build_reward(name, **setting)
    except EsrlError as error:  # a library is missing
        return {"reward": name, "k": k, "reason": str(error)}
    ids = range(len(references))
    values: dict[str, Any] = {}

    def ours() -> common.Row:
        lists = [[text] for text in references]
        start = common.seconds_now("cpu")
        values["ours"] = score_rows(reward, references, hypotheses, lists, index, ids)
        return {"us": (common.seconds_now("cpu") - start) / len(index) * 1e6}

    def library() -> common.Row:
        if name not in REFERENCES:
            raise common.Skip("no reference library is known here for this reward")
        score = REFERENCES[name][1](setting)
        start = common.seconds_now("cpu")
        values["library"] = [score(text, references[i]) for text, i in zip(hypotheses, index)]
        return {"us": (common.seconds_now("cpu") - start) / len(index) * 1e6}

    found = common.interleave({"ours": ours, "library": library}, rounds)
    mine, other = common.medians(found["ours"]), common.medians(found["library"])
    row = {
        "reward": name,
        "setting": "/".join(Path(str(value)).name for value in setting.values()) or None,
        "k": k,
        "pairs": len(index),
        "us_per_pair": mine.get("us"),
        "reference": REFERENCES[name][0] if name in REFERENCES else None,
        "reference_us": other.get("us"),
        "speedup": common.ratio(other.get("us"), mine.get("us")),
        "reason": mine.get("reason") or other.get("reason"),
    }
    if len(values) == 2:
        row["largest_difference"] = float(np.abs(values["ours"] - values["library"]).max())
    return row


def in_update(work: Workload, k: int, options: argparse.Namespace) -> common.Row:
    """The reward's share of a two-stage update's seconds, by the criterion's own clock."""
    bench = make_bench(work, k, "inverse_cdf", options.max_sampled_tokens)
    sample = work.batches[0]
    cases = {"update": lambda: run_update(bench, "two_stage", sample, options.seed)}
    found = common.medians(common.interleave(cases, options.rounds)["update"])
    return {
        "reward": bench.criterion.cfg.reward,
        "setting": "in an update",
        "k": k,
        **work.about,
        **found,
        "pairs": found.get("samples"),
        "us_per_pair": common.ratio(found.get("seconds_reward"), found.get("samples", 0) / 1e6),
        "update_share": common.ratio(found.get("seconds_reward"), found.get("seconds")),
    }


def make_pairs(work: Workload, k: int, seed: int) -> Pairs:
    """The batch's references, and K noisy copies of each as hypotheses."""
    scorer = work.criterion().scorer
    references = [texts[0] for texts in scorer.references(work.batches[0])]
    draw = np.random.default_rng(seed)
    words = sorted({word for text in references for word in text.split()})
    index = [i for i in range(len(references)) for _ in range(k)]
    return references, [noisy(references[i], words, draw) for i in index], index


def noisy(text: str, words: Sequence[str], draw: np.random.Generator) -> str:
    """``text`` with some of its words replaced by others and some dropped."""
    kept = []
    for word in text.split():
        change = draw.random()
        if change > NOISE:
            kept.append(word)
        elif change > NOISE / 2:
            kept.append(words[draw.integers(len(words))])
    return " ".join(kept)


if __name__ == "__main__":
    main()
