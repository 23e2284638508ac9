"""Checkpoints whose configuration holds Python are refused before a model is built from them."""

import argparse
import ast
import contextlib
import inspect
import pathlib
import sys

import fairseq
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from helpers import make_language_task, make_task
from omegaconf import OmegaConf

import esrl_fairseq  # noqa: F401 (its shims)
from esrl_fairseq.checkpoints.configuration import EVALUATED, calls, is_plain, refuse_code
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.architecture import defaults

READERS = ("eval", "eval_str_list", "eval_str_dict", "eval_bool")
"""What fairseq gives strings to."""
OTHERS = {"model_overrides", "line", "strip", "x", "uf"}
"""Typed by the user, lines of data, arguments of the readers' own."""


def test_all_that_fairseq_evaluates_is_known():
    """In its source, with its examples: what is given to ``eval``, or read so by argparse."""
    root, found = pathlib.Path(fairseq.__file__).parent, set()
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        for node in ast.walk(ast.parse(text)) if "eval" in text else ():
            if isinstance(node, ast.Call):
                found |= evaluated_by(node)
    assert len(found) > 30
    assert found - OTHERS <= EVALUATED


def evaluated_by(call):
    """Names of settings that a call evaluates."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name == "add_argument":
        kinds = [ast.unparse(word.value) for word in call.keywords if word.arg == "type"]
        if any(reader in kind for reader in READERS for kind in kinds):
            return {call.args[0].value.lstrip("-").replace("-", "_")}
    if (
        name not in READERS
        or not call.args
        or isinstance(call.func, ast.Attribute)
        != (name != "eval" and isinstance(call.func, ast.Attribute))
    ):
        return set()
    given = call.args[0]
    if isinstance(given, ast.Call):  # getattr(args, "name", …), line.strip()
        given = given.args[1] if given.args[1:] else given.func
    return {getattr(given, "attr", getattr(given, "id", getattr(given, "value", None)))}


BUILT = [
    ("transformer", "encoder_xformers_att_config"),
    ("transformer", "decoder_xformers_att_config"),
    ("transformer", "adaptive_softmax_cutoff"),
    ("lstm", "decoder_attention"),
    ("lstm", "adaptive_softmax_cutoff"),
    ("fconv", "encoder_layers"),
    ("fconv", "decoder_layers"),
    ("fconv", "decoder_attention"),
    ("fconv_self_att", "pretrained"),
    ("fconv_self_att", "self_attention"),
    ("fconv_self_att", "gated_attention"),
    ("fconv_self_att", "downsample"),
    ("lightconv", "adaptive_softmax_cutoff"),
    ("transformer_lm", "character_filters"),
    ("transformer_lm", "adaptive_input_cutoff"),
    ("fconv_lm", "decoder_layers"),
]
"""Architectures, and settings that fairseq evaluates when it builds their models."""


def checkpoint(path, arch, old=False, **settings):
    """A file of a model of ``arch`` with such settings, without parameters."""
    suppress = dict(argument_default=argparse.SUPPRESS, conflict_handler="resolve")
    parser = argparse.ArgumentParser(**suppress)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    args, _ = parser.parse_known_args([])
    vars(args).update(
        arch=arch, _name=arch, task="translation", criterion="adaptive_loss", **settings
    )
    args.tokens_per_sample, args.max_target_positions, args.max_source_positions = 64, 64, 64
    for name in ("character_embeddings", "adaptive_input"):
        if f"{name[:8]}" in "".join(settings):
            setattr(args, name, True)
    ARCH_CONFIG_REGISTRY[arch](args)
    cfg = {"model": args, "task": {"_name": "translation", "data": ""}, "criterion": None}
    state = {"model": {}, "extra_state": {"train_iterator": {"epoch": 1}}}
    history = [{"optimizer_name": "Adam", "lr_scheduler_state": {}, "num_updates": 5}]
    state.update(optimizer_history=history, last_optimizer_state=None)
    torch.save({**state, "args": args} if old else {**state, "cfg": cfg}, path)
    return str(path)


WORDS = {"adaptive_softmax_cutoff": "3,5"}


def load(path, arch, **overrides):
    """As fairseq's commands do it."""
    task = make_language_task() if arch.endswith("lm") else make_task()
    checkpoint_utils.load_model_ensemble_and_task([path], overrides or None, task)


@pytest.mark.parametrize("arch, setting", BUILT)
def test_python_is_never_run(arch, setting, tmp_path, monkeypatch):
    """Stock fairseq runs it; with this package the file is refused, in a sentence."""
    ran = tmp_path / "ran"
    path = checkpoint(tmp_path / "hostile.pt", arch, **{setting: f"[open({str(ran)!r}, 'w')]"})
    with pytest.raises(EsrlError, match=f"hostile.pt is refused, .* in model.{setting} the Python"):
        load(path, arch)
    assert not ran.exists()
    stock = inspect.unwrap(checkpoint_utils.load_checkpoint_to_cpu)
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", stock)
    with pytest.raises(BaseException):  # noqa: B017 (whatever a file is no good for)
        load(path, arch)
    assert ran.exists()


@pytest.mark.parametrize("code", [b"{}", bytearray(b"{}"), np.frombuffer(b"{}      ", np.int64)])
def test_bytes_are_python_too(code, tmp_path):
    with pytest.raises(EsrlError, match="decoder_attention the object"):
        load(checkpoint(tmp_path / "hostile.pt", "lstm", decoder_attention=code), "lstm")


def test_old_checkpoints(tmp_path):
    path = checkpoint(tmp_path / "old.pt", "lstm", old=True, decoder_attention="exit()")
    with pytest.raises(EsrlError, match="decoder_attention the Python 'exit"):
        load(path, "lstm")


def test_what_the_user_typed_is_his_own(tmp_path):
    """--model-overrides; the file's own other settings are refused as ever."""
    path = checkpoint(tmp_path / "one.pt", "lstm", decoder_attention="1", **WORDS)
    with pytest.raises(Exception, match="model is no longer supported"):  # it was built
        load(path, "lstm", decoder_attention="[print][0] is None")
    hostile = checkpoint(tmp_path / "two.pt", "lstm", encoder_layers="print()", **WORDS)
    with pytest.raises(EsrlError, match="encoder_layers the Python"):
        load(hostile, "lstm", decoder_attention="[print][0] is None")


def test_neither_modules_nor_classes_are_taken_from_it(tmp_path):
    ran, folder = tmp_path / "ran", tmp_path / "hostile_user_dir"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
    path = checkpoint(tmp_path / "one.pt", "lstm", user_dir=str(folder), _target_="os.abort")
    state = torch.load(path, weights_only=True)
    state["cfg"]["common"] = {"user_dir": str(folder), "_target_": "os.abort"}
    torch.save(state, path)
    with pytest.raises(EsrlError, match="cutoff"):  # it was built
        load(path, "lstm")
    assert not ran.exists() and "hostile_user_dir" not in sys.modules


NESTED = [
    {"model": {"encoder": {"xformers_att_config": "print()"}}},
    {"model": {"w2v_args": argparse.Namespace(conv_feature_layers="print()")}},
    {"model": {"list": [{"decoder_attention": "x.y"}]}},
    {"model": {"of_a_users_own_architecture": "__import__('os').getcwd()"}},
    {"task": {"left_pad_source": "print()"}},
    {"criterion": {"wer_args": "print()"}},
    {"optimizer": {"adam_betas": "(print(), 1)"}},
    {"task": {"data": "${oc.env:HOME}/x"}},
    {"task": {"data": "${${model.a}:HOME}"}, "model": {"a": "oc.env"}},
    {"task": {"data": "${oc.${model.a}:HOME}"}, "model": {"a": "env"}},
    {"model": {"decoder_attention": "${task.data}"}, "task": {"data": "print()"}},
    {"model": {"encoder": "${task.x}"}, "task": {"x": {"xformers_att_config": "print()"}}},
]


@pytest.mark.parametrize("typed", [dict, OmegaConf.create], ids=["dict", "omegaconf"])
@pytest.mark.parametrize("cfg", NESTED, ids=str)
def test_wherever_it_stands(cfg, typed):
    if typed is not dict:
        cfg = OmegaConf.create(cfg, flags={"allow_objects": True})
    with pytest.raises(EsrlError, match="evil.pt is refused"):
        refuse_code("evil.pt", {"cfg": cfg})


def test_circles_and_common_parts():
    own = argparse.Namespace(decoder_attention="1")
    own.own = own
    refuse_code("good.pt", {"cfg": {"model": own}, "args": own})
    shared = ["print()"]
    with pytest.raises(EsrlError):
        refuse_code("evil.pt", {"cfg": {"model": {"a": shared, "encoder_layers": shared}}})


@pytest.mark.parametrize(
    "text",
    [
        "", "True", "0", "None", "???", "(0.9, 0.98)", "10000,20000", "[3, 7, 15]", "3,7,-1",
        "[(512, 3)] * 20", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + 2*[(512, 2, 2)]",
        "((256, 4, 1024, True, 0.15),) * 14", "{'name': 'scaled_dot_product', 'dropout': 0.1}",
        " [1]", "${model.conv_feature_layers}", "(0.9, 1 - 1e-3)",
    ],
)  # fmt: skip
def test_values_of_honest_checkpoints(text):
    assert is_plain(text)
    refuse_code("good.pt", {"cfg": {"model": {"encoder_layers": text, "x": text}}})


def test_every_architecture_of_fairseq_is_honest():
    """The values that they have without anything said."""
    tried = 0
    for arch in ARCH_MODEL_REGISTRY:
        with contextlib.suppress(AttributeError):  # some read what they did not set
            model = {"_name": arch, **defaults(arch)}
            refuse_code("good.pt", {"cfg": {"model": argparse.Namespace(**model)}})
            refuse_code("good.pt", {"args": argparse.Namespace(**model)})
            tried += "[(" in str(model)
    assert tried > 10


@pytest.mark.parametrize(
    "text",
    [
        "print()", "x", "os.sep", "[x for x in ()]", "lambda: 0", "f'{print()}'", "[0] * 10**9",
        "[[0] * 9999] * 99999", "9**9**9", "(" * 5000, "1\x00", "-[1]", "{print(): 1}", "a; b",
        "[1][0]", "1 if x else 2", "(y := 3)", "${x}", "'a' * 99999", "[1] * [2]", "[0]*(10**5)",
    ],
)  # fmt: skip
def test_all_else_is_none(text):
    assert not is_plain(text)


@pytest.mark.parametrize(
    "text", ["data/run(2)/bin", "data (copy)", "a(b", "gelu", "~/x (1)/y", "(a|b)"]
)
def test_names_of_folders_are_no_python(text):
    assert not calls(text)
    refuse_code("good.pt", {"cfg": {"model": {"data": text}}})
