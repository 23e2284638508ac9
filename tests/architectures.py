"""Tiny models of fairseq's architectures, from options as users type them."""

import contextlib
import dataclasses
import io
from argparse import Namespace

import torch
from fairseq import options
from fairseq.data.legacy.masked_lm_dictionary import MaskedLMDictionary
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, FairseqLanguageModel
from helpers import PAD, SOURCE, TARGET

ENCODER = (
    "--encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 2 --encoder-layers 2"
)
DECODER = (
    "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 2 --decoder-layers 2"
)
SMALL = f"{ENCODER} {DECODER}"
LIGHT = f"{SMALL} --encoder-conv-dim 8 --decoder-conv-dim 8 --encoder-kernel-size-list [3,3]"
LSTM = (
    "--encoder-embed-dim 8 --decoder-embed-dim 8 --encoder-hidden-size 8 --decoder-hidden-size 8 "
    "--decoder-out-embed-dim 8"
)
FCONV = "--encoder-embed-dim 8 --decoder-embed-dim 8 --encoder-layers [(8,3)]*2"
LM = "--task language_modeling --decoder-embed-dim 8"
TRANSFORMER_LM = f"--task language_modeling {DECODER}"
LIGHT_LM = f"{TRANSFORMER_LM} --decoder-input-dim 8 --decoder-output-dim 8"

ARCHITECTURES = [
    *[
        f"transformer {SMALL} {more}".strip()
        for more in (
            "",
            "--encoder-normalize-before --decoder-normalize-before",
            "--encoder-learned-pos --decoder-learned-pos",
            "--no-token-positional-embeddings",
            "--no-scale-embedding --layernorm-embedding",
            "--share-all-embeddings",
            "--share-decoder-input-output-embed --decoder-output-dim 8",
            "--decoder-output-dim 10",
            "--no-cross-attention",
            "--cross-self-attention",
            "--cross-self-attention --no-cross-attention",
            "--encoder-layerdrop 0.5 --decoder-layerdrop 0.5",
            "--quant-noise-pq 0.5 --quant-noise-pq-block-size 2",
            "--quant-noise-scalar 0.5",
            "--activation-fn gelu --relu-dropout 0.2 --attention-dropout 0.2",
            "--checkpoint-activations",
        )
    ],
    f"transformer_wmt_en_de_big_t2t {SMALL}",
    f"transformer_align {SMALL} --alignment-layer 1",
    f"transformer_align {SMALL} --alignment-layer 0 --full-context-alignment",
    f"transformer_from_pretrained_xlm {SMALL} --pretrained-xlm-checkpoint none.pt",
    f"bart_base {SMALL}",
    f"mbart_base {SMALL}",
    "roberta_enc_dec",
    *[
        f"lightconv {LIGHT} --decoder-kernel-size-list {kernels} --decoder-conv-type {kind} {more}"
        for kind in ("dynamic", "lightweight")
        for kernels, more in (
            ("[1,2]", ""),
            ("[3,4]", "--encoder-normalize-before --decoder-normalize-before"),
            ("[31,64]", "--encoder-conv-type dynamic"),
            ("[7,31]", "--weight-softmax False --decoder-learned-pos"),
            ("[31,31]", "--decoder-glu True --encoder-glu True --weight-dropout 0.3"),
        )
    ],
    f"lightconv_iwslt_de_en {LIGHT} --decoder-kernel-size-list [31,3]",
    f"lstm {LSTM}",
    f"lstm {LSTM} --encoder-bidirectional --encoder-layers 2 --decoder-layers 2",
    f"lstm {LSTM} --decoder-attention 0",
    f"lstm_luong_wmt_en_de {LSTM}",
    f"fconv {FCONV} --decoder-layers [(8,3)]*2 --decoder-out-embed-dim 8",
    f"fconv {FCONV} --decoder-layers [(8,13),(10,1),(8,2,2)] --decoder-out-embed-dim 8 "
    "--share-input-output-embed",
    *[
        f"transformer_lm {TRANSFORMER_LM} {more}".strip()
        for more in (
            "",
            "--decoder-normalize-before --no-decoder-final-norm",
            "--decoder-learned-pos",
            "--scale-attn --scale-heads --scale-fc --scale-resids",
            "--decoder-input-dim 6 --decoder-output-dim 6 --share-decoder-input-output-embed",
            "--adaptive-input --adaptive-input-cutoff 3 --adaptive-input-factor 2 "
            "--decoder-input-dim 8",
            "--character-embeddings --character-filters [(1,4),(2,4)] --character-embedding-dim 4",
        )
    ],
    f"transformer_lm_gpt2_small {TRANSFORMER_LM}",
    f"lightconv_lm {LIGHT_LM} --decoder-kernel-size-list [31,3] --decoder-conv-type dynamic",
    f"lightconv_lm {LIGHT_LM} --decoder-kernel-size-list [31,3] --decoder-conv-type lightweight",
    f"lstm_lm {LM} --decoder-hidden-size 8 --decoder-out-embed-dim 8 --decoder-layers 2",
    f"lstm_lm {LM} --decoder-hidden-size 8 --decoder-out-embed-dim 8 --residuals",
    "hf_gpt2 --task language_modeling --embed-dim 8 --num-attention-heads 2 --num-layers 2 "
    "--max-target-positions 64",
    f"fconv_lm {LM} --decoder-layers [(8,3)]*2",
    f"fconv_lm {LM} --decoder-layers [(8,13),(8,1)]",
]
"""Of each architecture with an incremental decoder of text, and of options that change it."""

REFUSED = [
    f"fconv_self_att {FCONV} --decoder-layers [(8,3)]*2 --decoder-out-embed-dim 8 "
    "--multihead-attention-nheads 2 --multihead-self-attention-nheads 2 "
    "--encoder-attention-nheads 2",
    f"nonautoregressive_transformer {SMALL}",
    f"iterative_nonautoregressive_transformer {SMALL}",
    f"nacrf_transformer {SMALL}",
    f"cmlm_transformer {SMALL}",
    f"levenshtein_transformer {SMALL}",
    f"insertion_transformer {SMALL}",
    f"masked_lm {ENCODER}",
    f"roberta {ENCODER}",
]
"""Of text, too, but not written word by word, or without a cache."""


MASKED = MaskedLMDictionary()
for word in "u v w":
    MASKED.add_symbol(word)


def parse(text):
    """Options of a model, with fairseq's defaults."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            args = options.parse_args_and_arch(
                options.get_training_parser(), ["data", "--arch", *text.split()]
            )
        except SystemExit:
            raise AssertionError(complaint.getvalue().splitlines()[-1]) from None
    kind = getattr(ARCH_MODEL_REGISTRY[args.arch], "__dataclass", None)
    for field in dataclasses.fields(kind) if kind else ():
        if not hasattr(args, field.name) and isinstance(field.default, int | float | str | None):
            setattr(args, field.name, field.default)
    if args.arch.startswith(("roberta", "masked")):  # options of other tasks and models
        vars(args).update(
            encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2,
            encoder_layers=2, max_positions=64,
        )  # fmt: skip
    return args


def model_name(text):
    """The model that an architecture is of."""
    return ARCH_MODEL_NAME_REGISTRY[text.split()[0]]


def build(text, seed=2, scale=0.3):
    """The model of these options, far from uniform, in eval mode."""
    args = parse(text)
    kind = ARCH_MODEL_REGISTRY[args.arch]
    joined = getattr(args, "share_all_embeddings", False) or args.arch == "roberta_enc_dec"
    source = TARGET if issubclass(kind, FairseqLanguageModel) else SOURCE
    target = SOURCE if joined else TARGET
    if args.arch.endswith("xlm"):
        source, target = MASKED, MASKED
    task = Namespace(
        source_dictionary=source, target_dictionary=target, dictionary=target,
        output_dictionary=target,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = kind.build_model(args, task)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, scale)
            else:
                parameter += 0.2 * torch.randn(parameter.shape)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx == PAD:
                module.weight[PAD] = 0
    return model.eval()
