"""Options of architectures: which of them differ, and which a start model brings."""

import copy
from argparse import Namespace

import pytest
import torch
from fairseq import options
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

import esrl_fairseq  # noqa: F401 (registers)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start import comparing
from esrl_fairseq.start.architecture import name_of, options_of, same
from esrl_fairseq.start.comparing import check_architecture, refuse_other_tensors
from esrl_fairseq.start.reading import Checkpoint
from esrl_fairseq.start.taking import needed

SIZES = (
    "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 8 --decoder-embed-dim 8 "
    "--encoder-ffn-embed-dim 8 --decoder-ffn-embed-dim 8 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2"
)
KERNELS = "--encoder-kernel-size-list [3] --decoder-kernel-size-list [5]"
ARCHS = {
    "transformer": f"--arch transformer {SIZES} --share-all-embeddings --dropout 0.2",
    "big": "--arch transformer_wmt_en_de_big_t2t --no-decoder-final-norm",
    "bart": f"--arch bart_base {SIZES}",
    "lstm": "--arch lstm --encoder-embed-dim 8 --encoder-bidirectional --dropout 0.3",
    "fconv": "--arch fconv --encoder-layers [(8,3)]*2 --decoder-attention [True,False]",
    "lightconv": f"--arch lightconv {SIZES} {KERNELS} --decoder-conv-type lightweight",
    "transformer_lm": (
        "--task language_modeling --arch transformer_lm --decoder-embed-dim 8 --add-bos-token "
        "--decoder-learned-pos --tokens-per-sample 20"
    ),
    "gpt": "--task language_modeling --arch transformer_lm_gpt2_small --scale-attn",
    "lstm_lm": "--task language_modeling --arch lstm_lm --decoder-layers 2 --residuals",
    "hf_causal_lm": "--task language_modeling --arch hf_causal_lm --hf-model folder",
    "hf_seq2seq": "--arch hf_seq2seq --hf-model folder --hf-target-lang fr_XX",
}


def differences(run, start):
    """Of two ``cfg.model``."""
    return comparing.differences(options_of(run), options_of(start))


def parsed(words):
    """Options as fairseq-train parses them."""
    return options.parse_args_and_arch(options.get_training_parser(), ["data", *words.split()])


@pytest.fixture(scope="module")
def configurations():
    """``cfg.model`` of the command lines, made once; that of a legacy model are all options."""
    found = {name: parsed(words) for name, words in ARCHS.items()}
    for name in ("transformer", "transformer_lm"):  # as in checkpoints, one of either kind
        found[name] = convert_namespace_to_omegaconf(found[name]).model
    return found


@pytest.mark.parametrize("name", ARCHS)
def test_same_command_line_does_not_differ(name, configurations):
    """Also where building the model has written into one of both, as fairseq does."""
    run = configurations[name]
    assert differences(run, copy.deepcopy(run)) == ([], [])
    built = copy.deepcopy(run)
    if getattr(run, "share_all_embeddings", False):
        built.share_decoder_input_output_embed = True
    assert differences(run, built) == ([], [])
    assert differences(built, run) == ([], [])


@pytest.mark.parametrize("name", ARCHS)
def test_needed_options_bring_the_others(name, configurations):
    """Given on a command line, they lead to the same architecture."""
    run = configurations[name]
    arch = name_of(run)
    found = needed(arch, options_of(run))
    assert len(found) < 13, found
    task = ARCHS[name].partition("--arch")[0]

    def take(parser):
        parser.set_defaults(arch=arch, **found)

    parser = options.get_training_parser()
    again = options.parse_args_and_arch(parser, ["data", *task.split()], modify_parser=take)
    assert differences(run, again) == ([], [])


def test_what_follows_from_others_follows_a_users_own():
    found = needed("lstm", options_of(parsed("--arch lstm --dropout 0.3")))
    assert found == {"dropout": 0.3}


@pytest.mark.parametrize(
    ("name", "more", "option", "here", "there"),
    [
        ("transformer", "--encoder-attention-heads 4", "--encoder-attention-heads", "4", "2"),
        ("transformer", "--activation-fn gelu", "--activation-fn", "gelu", "relu"),
        ("transformer", "--encoder-normalize-before", "--encoder-normalize-before", "on", "off"),
        ("transformer", "--decoder-normalize-before", "--decoder-normalize-before", "on", "off"),
        ("transformer", "--no-scale-embedding", "--no-scale-embedding", "on", "off"),
        ("transformer", "--encoder-learned-pos", "--encoder-learned-pos", "on", "off"),
        ("transformer", "--layernorm-embedding", "--layernorm-embedding", "on", "off"),
        ("transformer", "--no-decoder-final-norm", "--no-decoder-final-norm", "on", "off"),
        ("transformer", "--no-token-positional-embeddings", "--no-token-pos", "on", "off"),
        ("transformer", "--decoder-output-dim 4", "--decoder-output-dim", "4", "8"),
        ("transformer", "--cross-self-attention", "--cross-self-attention", "on", "off"),
        ("bart", "--activation-fn relu", "--activation-fn", "relu", "gelu"),
        ("lstm", "--decoder-attention 0", "--decoder-attention", "0", "1"),
        ("lstm", "--encoder-hidden-size 16", "--encoder-hidden-size", "16", "8"),
        (
            "fconv",
            "--decoder-attention [True,True]",
            "--decoder-att",
            "[True,True]",
            "[True,False]",
        ),
        ("lightconv", "--decoder-kernel-size-list [3]", "--decoder-kernel-size-list", "[3]", "[5]"),
        ("lightconv", "--encoder-conv-type lightweight", "--enco", "lightweight", "dynamic"),
        ("lightconv", "--weight-softmax False", "--weight-softmax", "off", "on"),
        ("lightconv", "--encoder-glu False", "--encoder-glu", "off", "on"),
        ("gpt", "--decoder-attention-heads 8", "--decoder-attention-heads", "8", "16"),
        ("gpt", "--no-decoder-final-norm", "--no-decoder-final-norm", "on", "off"),
        ("lstm_lm", "--add-bos-token", "--add-bos-token", "on", "off"),
    ],
)
def test_other_functions(name, more, option, here, there, configurations):
    run = parsed(f"{ARCHS[name]} {more}")
    changing, harmless = differences(run, configurations[name])
    assert not harmless and len(changing) == 1, (changing, harmless)
    assert changing[0].startswith(option)
    assert changing[0].endswith(f" is {here} here but {there}")


@pytest.mark.parametrize(
    ("without", "here", "there"),
    [("--share-all-embeddings", "off", "on"), ("--encoder-attention-heads 2", "8", "2")],
)
def test_forgotten_options(without, here, there, configurations):
    """What follows from them is not said."""
    run = parsed(ARCHS["transformer"].replace(without, ""))
    changing, _ = differences(run, configurations["transformer"])
    assert changing == [f"{without.split()[0]} is {here} here but {there}"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("transformer", "--dropout 0.3"),
        ("transformer", "--attention-dropout 0.3"),
        ("transformer", "--relu-dropout 0.3"),
        ("transformer", "--encoder-layerdrop 0.3"),
        ("transformer", "--quant-noise-pq 0.1"),
        ("transformer", "--checkpoint-activations"),
        ("transformer", "--max-source-positions 50"),
        ("transformer", "--encoder-embed-path vectors.txt"),
        ("lstm", "--encoder-freeze-embed"),
        ("lightconv", "--weight-dropout 0.3"),
        ("hf_causal_lm", "--hf-model elsewhere"),
        ("hf_causal_lm", "--hf-attention eager"),
        ("hf_seq2seq", "--hf-model elsewhere"),
    ],
)
def test_same_function(name, more, configurations):
    run = parsed(f"{ARCHS[name]} {more}")
    changing, harmless = differences(run, configurations[name])
    assert not changing and len(harmless) == 1 and more.split()[0].strip("-")[:4] in harmless[0]


def test_pruned_layers(configurations):
    """--encoder-layers-to-keep leaves out layers of the start model, on purpose."""
    words = ARCHS["transformer"].replace("--encoder-layers 1", "--encoder-layers 2")
    run, start = parsed(f"{words} --encoder-layers-to-keep 0"), parsed(words)
    run.encoder_layers = 1  # as fairseq does
    changing, harmless = differences(run, start)
    assert not changing and len(harmless) == 2


def test_another_arch_with_the_same_options(configurations):
    named = parsed(f"{ARCHS['transformer']} --arch transformer_wmt_en_de_big_t2t")
    assert differences(named, configurations["transformer"])[0]  # normalises before
    base = parsed("--arch transformer_wmt_en_de --dropout 0.2")
    assert differences(base, parsed("--arch transformer --dropout 0.2")) == ([], [])


def test_config_files_and_command_lines():
    """A transformer of fairseq-hydra-train has sections, with defaults of their own."""
    section = {"layers": 1, "embed_dim": 8, "ffn_embed_dim": 8, "attention_heads": 2}
    there = {"_name": "transformer", "dropout": 0.2, "share_all_embeddings": True}
    there = OmegaConf.create({**there, "encoder": section, "decoder": section})
    here = parsed(ARCHS["transformer"])
    assert differences(here, there) == differences(there, here) == ([], [])
    there.encoder.attention_heads = 4
    assert differences(here, there)[0] == ["--encoder-attention-heads is 2 here but 4"]
    del there["decoder"]  # its width is then 512, not the encoder's
    assert options_of(there)["decoder_embed_dim"] == 512


def test_old_checkpoints_lack_new_options(configurations):
    """They have what they had when there was no such option."""
    run = parsed(ARCHS["transformer"])
    old = Namespace(**vars(run))
    for name in ("merge_src_tgt_embed", "quant_noise_pq", "no_scale_embedding", "base_layers"):
        vars(old).pop(name, None)
    assert differences(run, old) == ([], [])


@pytest.mark.parametrize(
    ("one", "other"),
    [("[3, 7]", [3, 7]), ("3,7", (3, 7)), ("1", True), ("0.0", 0), ("[(8, 3)] * 2", "[(8,3)]*2")],
)
def test_spellings(one, other):
    assert same(one, other) and same(other, one)
    assert not same(one, "relu") and not same(one, None)


def test_a_model_refuses_other_tensors():
    model, other = (
        torch.nn.Sequential(torch.nn.Linear(2, n), torch.nn.Linear(2, 2)) for n in (2, 3)
    )
    refuse_other_tensors(model, "--restore-file mle.pt")
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    state = other.state_dict()
    state["new.weight"] = state.pop("1.bias")
    with pytest.raises(SystemExit) as found:
        model.load_state_dict(state)
    words = str(found.value)
    assert "the parameters of --restore-file mle.pt do not fit" in words and "\n" not in words
    assert "1.bias is here alone; new.weight is there alone; " in words
    assert "0.weight is [2, 2] here but [3, 2] there (and 1 more)" in words


def test_models_that_cannot_be_compared(caplog):
    """Of another kind, or of code that is not here."""
    run, lstm = parsed(ARCHS["transformer"]), parsed(ARCHS["lstm"])
    start = Checkpoint("mle.pt", Namespace(model=lstm), {}, {})
    with pytest.raises(EsrlError, match="--arch is transformer here but lstm in mle.pt: mend"):
        check_architecture(run, start, "mend", "^$")
    check_architecture(run, Checkpoint("mle.pt", Namespace(model=run), {}, {}), "mend", "^$")
    assert not caplog.text
    lstm.arch = "elsewhere"
    check_architecture(run, start, "mend", "^$")
    assert "mle.pt is of --arch elsewhere, whose options cannot be compared" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"restore_file": "other.pt"}, "both name a start model: give one of them"),
        ({"reset_meters": True, "reset_lr_scheduler": True}, "--reset-lr-scheduler --reset-meters"),
    ],
)
def test_two_starts(given, words):
    cfg = CheckpointConfig(finetune_from_model="mle.pt")
    comparing.refuse_two_starts(cfg)
    for name, value in given.items():
        setattr(cfg, name, value)
    with pytest.raises(EsrlError, match=words):
        comparing.refuse_two_starts(cfg)
    cfg.finetune_from_model = None
    comparing.refuse_two_starts(cfg)


def test_list_of_differences():
    """The path comes once."""
    run = parsed(f"{ARCHS['transformer']} --encoder-attention-heads 4 --activation-fn gelu")
    start = Checkpoint("mle.pt", Namespace(model=parsed(ARCHS["transformer"])), {}, {})
    with pytest.raises(EsrlError) as found:
        check_architecture(run, start, "mend", "^$")
    assert str(found.value) == (
        "--encoder-attention-heads is 4 here but 2 in mle.pt; --activation-fn is gelu here "
        "but relu there: mend"
    )
