"""hf_seq2seq against ``generate`` of the same model: sampled tokens a second; and one update.

One row a case, model and K. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from methods import STAGES
from torch import Tensor
from workload import Lengths, make_task, random_pairs

from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.seq2seq import HfSeq2Seq, HfSeq2SeqConfig
from esrl_fairseq.huggingface.words import make_dictionary
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS

SHAPES = {  # model type, layers on each side, width, FFN, heads, tokens of the vocabulary
    "tiny": ("marian", 1, 16, 32, 2, 64),
    "marian": ("marian", 6, 256, 1024, 4, 16000),
    "m2m_100": ("m2m_100", 6, 256, 1024, 4, 32000),
    "t5": ("t5", 6, 256, 1024, 4, 16000),
}
PAD, END = 1, 2
COLUMNS = (
    "params", "length", "k", "case", "tokens_per_s", "spread", "seconds", "peak_mb",
    "esrl_speedup", *(f"seconds_{stage}" for stage in STAGES[:3]), "reason",
)  # fmt: skip
CALLS = 3
"""Measured calls of a process; its result is their median."""
Call = Callable[[int], common.Row]
"""seed -> seconds and tokens."""


class Setting:
    """A model with random weights and a batch of random sources, for all cases of a process.

    Args:
        options: of the command.
        params: one of :data:`SHAPES`.
        k: samples an input.
    """

    def __init__(self, options: argparse.Namespace, params: str, k: int):
        self.options, self.k, self.device = options, k, options.device
        try:
            library.transformers().utils.logging.disable_progress_bar()
            with tempfile.TemporaryDirectory() as folder:
                save_random(folder, *SHAPES[params], options.seed)
                words = make_dictionary(SHAPES[params][-1])
                self.model = HfSeq2Seq(HfSeq2SeqConfig(hf_model=folder), words, words)
        except EsrlError as error:
            raise common.Skip(str(error)) from error
        self.model.to(self.device, common.DTYPES[options.dtype]).eval()
        self.task = make_task(words, words, Lengths.fixed(options.length))
        self.task.options.num_samples = k
        dataset = random_pairs(words, options.inputs, options.length, options.seed)
        self.task.datasets["train"] = dataset
        batch = dataset.collater([dataset[i] for i in range(len(dataset))])
        self.batch = move(batch, self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def esrl(self, seed: int) -> common.Row:
        """This package's stage one."""
        sampler = self.task.build_sampler(self.model)
        if self.options.fixed_rows:
            sampler.strategy = FIXED_ROWS
        ones = np.ones(self.options.inputs, np.float32)
        counts = np.full(self.options.inputs, self.k)
        start = common.seconds_now(self.device)
        rows = sampler.sample_rows(self.batch, counts, ones, seed)
        seconds = common.seconds_now(self.device) - start
        return {"seconds": seconds, "tokens": int(rows.lengths.sum())}

    def generate(self, seed: int) -> common.Row:
        """transformers' own sampling, K samples an input at once."""
        model, encoder = self.model.decoder.model, self.model.encoder
        tokens = encoder.aligned(self.batch["net_input"]["src_tokens"])
        mask = tokens.ne(encoder.dictionary.pad()).long()
        length = self.options.length
        torch.manual_seed(seed)
        start = common.seconds_now(self.device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=encoder.ids[tokens],
                attention_mask=mask,
                do_sample=True,
                num_return_sequences=self.k,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length,
                max_new_tokens=length + 1,  # EOS
            )
        seconds = common.seconds_now(self.device) - start
        ends = found[:, 1:].eq(END)
        tokens = int((ends.cumsum(1) - ends.long() == 0).sum())
        return {"seconds": seconds, "tokens": tokens}

    def update(self, seed: int) -> common.Row:
        """One update of criterion esrl, without fairseq's trainer."""
        cfg = EsrlCriterionConfig(reward_post_process="none")
        criterion = EsrlCriterion(cfg, self.task).train()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.model.train()
        torch.manual_seed(seed)
        start = common.seconds_now(self.device)
        loss, _, log = criterion(self.model, self.batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        self.task.rl.commit()
        seconds = common.seconds_now(self.device) - start
        stages = {f"seconds_{stage}": log[f"seconds_{stage}"] for stage in STAGES[:3]}
        return {"seconds": seconds, "tokens": int(log["sampled_tokens"]), **stages}


CASES = {"esrl": Setting.esrl, "generate": Setting.generate, "update": Setting.update}


def move(x: Any, device: str) -> Any:
    """A fairseq batch there."""
    if isinstance(x, dict):
        return {key: move(value, device) for key, value in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x


def save_random(
    folder: str, kind: str, layers: int, width: int, ffn: int, heads: int, words: int, seed: int
) -> None:
    """A model with random weights, without a tokenizer."""
    names = {
        "vocab_size": words, "d_model": width, "pad_token_id": PAD, "eos_token_id": END,
        "bos_token_id": 0, "decoder_start_token_id": END,
    }  # fmt: skip
    if kind == "t5":
        names |= {"d_ff": ffn, "num_layers": layers, "num_heads": heads, "d_kv": width // heads}
    else:
        names["max_position_embeddings"] = 512
        for side in ("encoder", "decoder"):
            names |= {f"{side}_layers": layers, f"{side}_ffn_dim": ffn}
            names[f"{side}_attention_heads"] = heads
    models = library.transformers()
    torch.manual_seed(seed)
    config = models.AutoConfig.for_model(kind, **names)
    models.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)


def main() -> None:
    """Every case once a round, each time in a new process."""
    options = parse()
    if options.case:
        print(json.dumps(common.attempt(lambda: run_case(options))))
        return
    head = common.header(options)
    common.print_header(head)
    cases = {
        case: lambda case=case: common.child(case, options)
        for case in itertools.product(options.params, options.k, options.cases)
    }
    results = common.interleave(
        cases,
        options.rounds,
        warmups=0,
        after_round=lambda results: common.save(table(results, options), head, options.json),
    )
    common.finish(table(results, options), head, COLUMNS, options.json)


def parse() -> argparse.Namespace:
    parser = common.make_parser(__doc__, k=(8,))
    add = parser.add_argument
    add("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    add("--fixed-rows", action="store_true", help="of esrl: decode as on a GPU")
    parser.set_defaults(params=["marian", "m2m_100"])
    common.add_child_options(parser)
    options = parser.parse_args()
    common.check_options(options)
    if wrong := [name for name in options.params if name not in SHAPES]:
        raise SystemExit(f"--params {wrong[0]}: choose among {', '.join(SHAPES)}")
    return options


def table(results: dict[Any, list[common.Row]], options: argparse.Namespace) -> list[common.Row]:
    """Medians and ratios."""
    rows = []
    for (params, k, case), found in results.items():
        row = {"case": case, "k": k, "params": params, "length": options.length}
        row.update(seconds=None, tokens_per_s=None)
        row.update(common.medians(found))
        row["spread"] = common.spread(found, "seconds")
        rows.append(row)
    own = {(x["params"], x["k"]): x["tokens_per_s"] for x in rows if x["case"] == "esrl"}
    for row in rows:
        if row["case"] == "generate":
            speed = own.get((row["params"], row["k"]))
            row["esrl_speedup"] = common.ratio(speed, row["tokens_per_s"])
    return rows


def run_case(options: argparse.Namespace) -> common.Row:
    """One case in this process: a call to warm up, then the measured ones; the peak is over all."""
    params, k, case = json.loads(options.case)
    setting = Setting(options, params, k)
    memory = common.PeakMemory(options.device)
    CASES[case](setting, options.seed)
    results = [CASES[case](setting, options.seed + 1 + i) for i in range(CALLS)]
    row = common.medians(results)
    row["tokens_per_s"] = row["tokens"] / row["seconds"]
    about = {"parameters": setting.parameters, "inputs": options.inputs}
    return {**row, **about, "peak_mb": memory.bytes() / 1e6}


if __name__ == "__main__":
    main()
