"""Tiny models of fairseq's architectures, from options as users type them."""

import contextlib
import dataclasses
import io
from argparse import Namespace

import torch
from fairseq import options
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqLanguageModel
from helpers import PAD, SOURCE, TARGET

ENCODER = (
    "--encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 2 --encoder-layers 2"
)
DECODER = (
    "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 2 --decoder-layers 2"
)
SMALL = f"{ENCODER} {DECODER}"


def parse(text):
    """Options of a model, with fairseq's defaults."""
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            args = options.parse_args_and_arch(
                options.get_training_parser(), ["data", *text.split()]
            )
        except SystemExit:
            raise AssertionError(complaint.getvalue().splitlines()[-1]) from None
    kind = getattr(ARCH_MODEL_REGISTRY[args.arch], "__dataclass", None)
    for field in dataclasses.fields(kind) if kind else ():
        if not hasattr(args, field.name) and isinstance(
            field.default, (int, float, str, type(None))
        ):
            setattr(args, field.name, field.default)
    return args


def build(text, seed=1, scale=0.5):
    """The model of these options, far from uniform, in eval mode."""
    args = parse(text)
    kind = ARCH_MODEL_REGISTRY[args.arch]
    joined = getattr(args, "share_all_embeddings", False)
    source = TARGET if issubclass(kind, FairseqLanguageModel) else SOURCE
    target = SOURCE if joined else TARGET
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
