"""Stage one against other engines: sampled tokens a second of the same model on the same batch.

One row an engine, size and K. See benchmarks/README.md.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from methods import sequence_generator
from torch import nn
from workload import Workload, fairseq_files, workloads

COLUMNS = (
    "params", "length", "k", "engine", "tokens_per_s", "spread", "seconds", "tokens",
    "esrl_speedup", "gflops_per_s", "gemm_share", "reason",
)  # fmt: skip
Engine = Callable[[int, int], tuple[Callable[[], Any], Callable[[Any], int]]]
"""(K, seed) -> what is timed, and what counts the tokens of its result."""


CALLS = 3
"""Measured calls of a process; its result is their median."""


def main() -> None:
    """Every size and K; the engines take turns, each time in a new process.

    In one process the idle threads of one library slow down the next one's: on 2 cores all engines
    lost a third beside CTranslate2.
    """
    parser = common.make_parser(__doc__, k=(1, 4, 16, 64))
    engines = [name for name in ENGINES if name != "esrl_compiled"]  # which takes minutes
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=engines)
    parser.set_defaults(params=["3M", "35M"])
    common.add_child_options(parser)
    options = parser.parse_args()
    common.check_options(options)
    if options.case:
        print(json.dumps(common.attempt(lambda: run_case(options))))
        return
    head = common.header(options)
    common.print_header(head)
    rows: list[common.Row] = []
    for params in ["checkpoint"] if options.checkpoint else options.params:
        for k in options.k:
            rows += measure(params, k, options)
            common.save(rows, head, options.json)
    common.finish(rows, head, COLUMNS, options.json)


def measure(params: str, k: int, options: Any) -> list[common.Row]:
    """One row an engine, and one of the plain matrix products."""
    cases = {
        name: lambda case=(params, k, name): common.child(case, options)
        for name in [*options.engines, "gemm"]
    }
    rows = []
    for name, results in common.interleave(cases, options.rounds, warmups=0).items():
        rows.append({"engine": name, "k": k, "params": params, **common.medians(results)})
        rows[-1]["spread"] = common.spread(results, "tokens_per_s")
        rows[-1].setdefault("tokens_per_s", None)
    by_name = {row["engine"]: row for row in rows}
    add_rates(rows, by_name["gemm"])
    esrl = by_name.get("esrl", {}).get("tokens_per_s")
    for row in rows:
        row["esrl_speedup"] = common.ratio(esrl, row["tokens_per_s"])
    return rows


def run_case(options: Any) -> common.Row:
    """One engine in this process: a call to warm up, then the measured ones."""
    params, k, name = json.loads(options.case)
    options.params = [params]
    work = next(iter(workloads(options)))
    with tempfile.TemporaryDirectory() as folder:
        if name == "gemm":
            case = gemm_case(work, k)
        else:
            case = timed(work, ENGINES[name](work, Path(folder)), k, options.seed)
        case()
        results = [case() for _ in range(CALLS)]
    return {**work.about, **common.medians(results)}


def timed(work: Workload, engine: Any, k: int, seed: int) -> Callable[[], common.Row]:
    """A case that samples K times each input; counting the tokens is not timed."""

    def case() -> common.Row:
        sample, count = engine(k, seed)
        start = common.seconds_now(work.device)
        result = sample()
        seconds = common.seconds_now(work.device) - start
        tokens = count(result)
        return {"tokens_per_s": tokens / seconds, "seconds": seconds, "tokens": tokens}

    return case


# Engines


def esrl(work: Workload, folder: Path) -> Engine:
    """This package's stage one."""
    batch = work.batches[0]
    sampler = work.task.build_sampler(work.model)
    ones = np.ones(len(batch["id"]), dtype=np.float32)

    def prepare(k: int, seed: int) -> Any:
        counts = np.full(len(ones), k)
        return (
            lambda: sampler.sample_rows(batch, counts, ones, seed),
            lambda rows: int(rows.lengths.sum()),
        )

    return prepare


def esrl_compiled(work: Workload, folder: Path) -> Engine:
    """The same with --compile-decoding; the first call compiles, and is not measured."""
    work.task.options.compile_decoding = True
    return esrl(work, folder)


def fairseq_generator(work: Workload, folder: Path) -> Engine:
    """fairseq's SequenceGenerator with ``--sampling --beam K``."""

    def prepare(k: int, seed: int) -> Any:
        torch.manual_seed(seed)
        generator = sequence_generator(work, k)
        return (
            lambda: generator(work.batches[0]),
            lambda found: sum(len(row["tokens"]) for rows in found for row in rows),
        )

    return prepare


def transformers(work: Workload, folder: Path) -> Engine:
    """``generate(do_sample=True)`` of a MarianMTModel with the same weights."""
    model = marian(work)
    tokens = right_padded(work)
    lengths, longest = work.lengths, int(work.batches[0]["net_input"]["src_lengths"].max())
    most = int(lengths.a * longest + lengths.b)
    pad, eos = model.config.pad_token_id, model.config.eos_token_id

    def prepare(k: int, seed: int) -> Any:
        torch.manual_seed(seed)

        def sample() -> torch.Tensor:
            with torch.inference_mode():
                return model.generate(
                    input_ids=tokens,
                    attention_mask=tokens.ne(pad).long(),
                    do_sample=True,
                    num_beams=1,
                    num_return_sequences=k,
                    top_k=0,
                    top_p=1.0,
                    min_new_tokens=lengths.minimum,
                    max_new_tokens=most + 1,  # EOS
                )

        def count(found: torch.Tensor) -> int:
            ends = found[:, 1:].eq(eos)
            return int((ends.cumsum(1) - ends.long() == 0).sum())

        return sample, count

    return prepare


def marian(work: Workload) -> Any:
    """The model as transformers' MarianMTModel, weight by weight; it computes the same."""
    with missing_as_skip("transformers"):
        # transformers imports a torchaudio it finds, also one that cannot be loaded beside this
        # torch; nothing here needs it.
        sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type]
        from transformers import MarianConfig, MarianMTModel
    args, target = work.args, work.task.target_dictionary
    if getattr(args, "encoder_normalize_before", False) or not args.share_all_embeddings:
        raise common.Skip("MarianMTModel has post-norm layers and one embedding for both sides")
    config = MarianConfig(
        vocab_size=len(target),
        d_model=args.encoder_embed_dim,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        encoder_attention_heads=args.encoder_attention_heads,
        decoder_attention_heads=args.decoder_attention_heads,
        encoder_ffn_dim=args.encoder_ffn_embed_dim,
        decoder_ffn_dim=args.decoder_ffn_embed_dim,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=1024,
        pad_token_id=target.pad(),
        eos_token_id=target.eos(),
        bos_token_id=target.bos(),
        forced_eos_token_id=target.eos(),
        decoder_start_token_id=target.eos(),
    )
    model = MarianMTModel(config).eval()
    copy_weights(work, model)
    return model.to(work.device, work.dtype)


def copy_weights(work: Workload, model: nn.Module) -> None:
    """fairseq's weights have the same names but for the embedding; positions are functions."""
    own = model.state_dict()
    fairseq = work.model.state_dict()
    with torch.no_grad():
        for name, value in own.items():
            if "embed_positions" in name:
                positions = getattr(work.model, name.split(".")[1]).embed_positions
                value.copy_(positions.weights[positions.padding_idx + 1 :][: len(value)])
            elif "embed_tokens" in name or name in ("model.shared.weight", "lm_head.weight"):
                value.copy_(fairseq["encoder.embed_tokens.weight"])
            elif name != "final_logits_bias":  # which is 0
                value.copy_(fairseq[name.removeprefix("model.")])


def right_padded(work: Workload) -> torch.Tensor:
    """Source tokens with padding on the right, where Marian's positions expect it."""
    pad = work.task.source_dictionary.pad()
    rows = [row[row.ne(pad)] for row in work.batches[0]["net_input"]["src_tokens"]]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)


def ctranslate2(work: Workload, folder: Path) -> Engine:
    """CTranslate2's sampling, converted by its own FairseqConverter."""
    with missing_as_skip("ctranslate2"):
        import ctranslate2 as engine
    translator = converted(work, folder, engine)
    source = work.task.source_dictionary
    texts = [[source[i] for i in row[row.ne(source.pad())][:-1]] for row in right_padded(work)]
    lengths, longest = work.lengths, max(map(len, texts)) + 1
    most = int(lengths.a * longest + lengths.b) + 1  # with EOS
    least = most if lengths.minimum == lengths.b else lengths.minimum

    def prepare(k: int, seed: int) -> Any:
        engine.set_random_seed(seed)
        return (
            lambda: translator.translate_batch(
                texts,
                beam_size=1,
                num_hypotheses=k,
                sampling_topk=0,
                min_decoding_length=least,
                max_decoding_length=most,
                return_end_token=True,
            ),
            lambda found: sum(len(words) for result in found for words in result.hypotheses),
        )

    return prepare


def converted(work: Workload, folder: Path, engine: Any) -> Any:
    """A translator with the model's weights, on as many threads as torch has."""
    checkpoint, data = fairseq_files(work, folder)
    output = str(folder / "ctranslate2")
    engine.converters.FairseqConverter(checkpoint, data).convert(output, force=True)
    kinds = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    return engine.Translator(
        output,
        device=work.device,
        compute_type=kinds[work.dtype],
        inter_threads=1,
        intra_threads=torch.get_num_threads(),
    )


@contextlib.contextmanager
def missing_as_skip(name: str) -> Iterator[None]:
    """An extra that cannot be imported is a reason, not an error."""
    try:
        yield
    except ImportError as error:
        raise common.Skip(f"not available (pip install {name}): {error}") from None


ENGINES: dict[str, Callable[[Workload, Path], Engine]] = {
    "esrl": esrl,
    "esrl_compiled": esrl_compiled,
    "sequence_generator": fairseq_generator,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
}


# The bound: the model's matrix products alone


def gemm_case(work: Workload, k: int) -> Callable[[], common.Row]:
    """The matrix products of encoder and one decoding step by plain torch, with all rows alive.

    Each layer has its own weight matrix, as in the model. Every sampled token takes one row
    through a step; the rows of an input share encoder and cross-attention's keys and values.
    Products within attention are left out.
    """
    source, rows, once, step = products(work, k)
    source_x = gemm_inputs(once, source, work)
    step_x = gemm_inputs(step, rows, work)

    def case() -> common.Row:
        start = common.seconds_now(work.device)
        with torch.inference_mode():
            for weight in once:
                torch.matmul(source_x[weight.size(1)], weight.t())
            middle = common.seconds_now(work.device)
            for _ in range(REPEATED_STEPS):
                for weight in step:
                    torch.matmul(step_x[weight.size(1)], weight.t())
        end = common.seconds_now(work.device)
        return {
            "seconds_once": middle - start,
            "seconds_step": (end - middle) / REPEATED_STEPS,
            "rows": rows,
            "flops_once": 2 * source * sum(weight.numel() for weight in once),
            "flops_token": 2 * sum(weight.numel() for weight in step),
        }

    return case


REPEATED_STEPS = 3


def products(work: Workload, k: int) -> tuple[int, int, list[torch.Tensor], list[torch.Tensor]]:
    """Source tokens and rows of the batch, and the weights that each is multiplied with."""
    batch, model = work.batches[0], work.model
    linear = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    shared = ("encoder_attn.k_proj", "encoder_attn.v_proj")
    once = [w for name, w in linear.items() if name.startswith("encoder.") or name.endswith(shared)]
    step = [
        w for name, w in linear.items() if name.startswith("decoder.") and not name.endswith(shared)
    ]
    source = int(batch["net_input"]["src_lengths"].sum())
    return source, k * len(batch["id"]), once, step


def gemm_inputs(weights: list[torch.Tensor], rows: int, work: Workload) -> dict[int, torch.Tensor]:
    """A random matrix with ``rows`` rows for each width that the weights take."""
    widths = {weight.size(1) for weight in weights}
    return {n: torch.randn(rows, n, device=work.device, dtype=work.dtype) for n in widths}


def add_rates(rows: list[common.Row], gemm: common.Row) -> None:
    """Each engine's FLOP/s, and its share of what the plain products reach for as many tokens."""
    if "seconds_step" not in gemm:
        return
    alive = gemm.pop("rows")
    flops_once, flops_token = gemm.pop("flops_once"), gemm.pop("flops_token")
    # As many tokens as an engine made, so that both have the same share of the encoder.
    gemm["tokens"] = next((row["tokens"] for row in rows if row.get("tokens")), alive)
    for row in rows:
        tokens = row.get("tokens")
        if not tokens:
            continue
        flops = flops_once + flops_token * tokens
        ideal = gemm["seconds_once"] + gemm["seconds_step"] * tokens / alive
        row.setdefault("seconds", ideal)
        row["gflops_per_s"] = flops / row["seconds"] / 1e9
        row["gemm_share"] = ideal / row["seconds"]
    gemm["tokens_per_s"] = gemm["tokens"] / gemm["seconds"]


if __name__ == "__main__":
    main()
