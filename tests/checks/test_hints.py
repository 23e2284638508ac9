"""What the parser of fairseq's commands says about options and choices that it does not know."""

import pytest
from fairseq import options

import esrl_fairseq  # noqa: F401 (registers, and extends the parser)

OURS = "data --task esrl_translation --criterion esrl --arch transformer"


def refused(words, capsys, parser=options.get_training_parser):
    """The sentence; argparse's exit code."""
    with pytest.raises(SystemExit) as found:
        options.parse_args_and_arch(parser(), words.split())
    assert found.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert ": error: " in sentence
    return sentence


STOCK = "data --task translation --criterion esrl --arch transformer"
TASKS = (
    "belongs to --task esrl_translation (or esrl_translation_from_pretrained_bart, "
    "esrl_language_modeling), but --task is translation"
)
PROMPTS = "data --task esrl_language_modeling --criterion esrl --arch transformer_lm"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (f"{OURS} --elimination-ration 0.3", "0.3; did you mean --elimination-ratio?"),
        (f"{OURS} --elimination_ratio=0.3", "did you mean --elimination-ratio?"),
        (f"{OURS} --num-sample 3 --rewards x", "mean --num-samples?; did you mean --reward?"),
        (f"{OURS} --encoder-heads 3", "did you mean --encoder-attention-heads?"),
        (f"{OURS} --finetune-from-modell x", "did you mean --finetune-from-model?"),
        (f"{STOCK} --num-samples 3", f"--num-samples {TASKS}"),
        (f"{STOCK} --num-sample 3", f"did you mean --num-samples, which {TASKS}?"),
        (f"{OURS} --criterion adam", "argument --criterion: invalid choice: 'adam' (choose from"),
        (
            f"{OURS} --criterion cross_entropy --kl-weight 3",
            "--kl-weight belongs to --criterion esrl, but --criterion is cross_entropy",
        ),
        (
            f"{PROMPTS} --hf-model x",
            "--hf-model belongs to --arch hf_causal_lm (or hf_seq2seq), but --arch is transformer_",
        ),
        (f"{OURS} --hf-tokenizer x", "belongs to --bpe hf_tokenizer, but --bpe is not given"),
        (f"{OURS} --label-smoothing 0.1", "--label-smoothing belongs to --criterion "),
        (f"{OURS} --prompt-tokens 3", "belongs to --task esrl_language_modeling, but --task is"),
        (f"{OURS} --warmup-init-lr 9", "belongs to --lr-scheduler "),
        ("data --task esrl_translatoin", "'esrl_translatoin': did you mean esrl_translation?"),
        ("data --arch transfomer", "--arch/-a: invalid choice: 'transfomer': did you mean trans"),
        (f"{OURS} --capability blue", "invalid choice: 'blue': did you mean bleu?"),
    ],
)
def test_hints(words, hint, capsys):
    assert hint in refused(words, capsys)


def test_nothing_alike(capsys):
    assert refused(f"{OURS} --nonsense 3", capsys).endswith(
        ": unrecognized arguments: --nonsense 3"
    )


def test_other_commands(capsys):
    words = "data --path model.pt --max-leng-a 2"
    sentence = refused(words, capsys, options.get_generation_parser)
    assert sentence.endswith("unrecognized arguments: --max-leng-a 2; did you mean --max-len-a?")
    words = "data --path model.pt --num-samples 2"
    assert "--task is translation" in refused(words, capsys, options.get_generation_parser)
