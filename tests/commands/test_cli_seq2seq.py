"""``--arch hf_seq2seq`` by its commands: from text to a Hugging Face folder, resuming, MLE."""

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from cli_fixtures import write_pairs
from command_lines import COMMON, USER_DIR
from test_cli_huggingface import succeed, tool
from test_cli_language_model import refused
from test_cli_resume import comparable, load, same_model
from tiny_seq2seq import save
from tiny_tokenizers import TEXTS, marian, nllb, transformers

LANGUAGES = "--hf-source-lang eng_Latn --hf-target-lang deu_Latn"
ENGLISH = sorted({word for text in TEXTS["en"] for word in text.split()})
GERMAN = sorted({word for text in TEXTS["de"] for word in text.split()})
REWARD = f"""
ENGLISH = {ENGLISH}


def vowels(sources, hypotheses, references):
    assert all(set(source.split()) <= set(ENGLISH) for source in sources), sources
    assert not any("_Latn" in text or "<" in text for text in hypotheses), hypotheses
    return [text.count("e") / max(len(text), 1) for text in hypotheses]


vowels.range = (0, 1)
vowels.needs_references = False
"""


@dataclass
class Pairs:
    """A model's folder, its words of the texts, and binarized pairs."""

    model: str
    ids: Path
    data: Path
    text: Path


def make_pairs(commands, folder, model, *options):
    draw = random.Random(1)
    for split, lines in (("train", 60), ("valid", 20), ("test", 10)):
        words = [draw.randint(1, 5) for _ in range(lines)]
        pairs = [(" ".join(draw.choices(x, k=n)) for x in (GERMAN, ENGLISH)) for n in words]
        write_pairs(folder / "text", split, [tuple(pair) for pair in pairs])
    files = [folder / "text" / f"{x}.{y}" for x in ("train", "valid", "test") for y in ("en", "de")]
    ids = folder / "ids"
    succeed("data", "--hf-model", model, "--out", ids, *"-s en -t de".split(), *options, *files)
    return Pairs(model, ids, binarize(commands, ids, folder / "data"), folder / "text")


def binarize(commands, ids, data, *more):
    commands.succeed(
        *["fairseq-preprocess", "--source-lang en --target-lang de", "--destdir", data, *more],
        f"--trainpref {ids / 'train'} --validpref {ids / 'valid'} --testpref {ids / 'test'}",
        f"--srcdict {ids / 'dict.en.txt'} --tgtdict {ids / 'dict.de.txt'}",
    )
    return data


@pytest.fixture(scope="module")
def pairs(commands):
    """For a model of many languages."""
    folder = commands.folder / "seq2seq"
    (folder / "model").mkdir(parents=True)
    (commands.folder / "seq2seq_reward.py").write_text(REWARD)
    tokenizer = nllb(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    size = dict(vocab_size=len(tokenizer), max_position_embeddings=40)
    model = save(folder / "model", "m2m_100", tokenizer=False, **size)
    settings = transformers.GenerationConfig.from_pretrained(model)
    settings.forced_bos_token_id = None  # as that of NLLB
    settings.save_pretrained(model)
    return make_pairs(commands, folder, model, *LANGUAGES.split())


def options(pairs, folder, *more):
    """The same command starts and resumes a run."""
    return [
        *["fairseq-train", pairs.data, "--user-dir", USER_DIR, "--save-dir", folder, COMMON],
        *["--task esrl_translation --criterion esrl --lr 5e-3 --hf-target-lang deu_Latn"],
        *["--arch hf_seq2seq", "--hf-model", pairs.model, "--reward python:seq2seq_reward.vowels"],
        *["--sample-max-len-a 0 --sample-max-len-b 8 --num-samples 4 --check-start off", *more],
    ]


def test_from_text_to_a_trained_folder(commands, pairs, tmp_path):
    """KL from the folder's model, the reward rises; fairseq's commands and transformers give the
    same text for the result."""
    result = commands.succeed(*options(pairs, tmp_path / "rl", "--max-epoch 8 --kl-weight 0.01"))
    training = result.logged("train_inner")
    assert len(training) == 24 and training[0]["kl"] == 0 and training[-1]["kl"] > 0.02
    reward = [sum(line["reward"] for line in part) for part in (training[:6], training[-6:])]
    assert reward[1] > 1.2 * reward[0]
    assert f"the KL penalty is measured from the model in {pairs.model}" in result.stdout

    checkpoint = tmp_path / "rl" / "checkpoint_last.pt"
    succeed("export", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    own = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    weights = load(checkpoint)["model"]
    assert weights.keys() == {f"decoder.model.{name}" for name in own.state_dict()}
    for name, weight in own.state_dict().items():
        assert torch.equal(weight, weights[f"decoder.model.{name}"])

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", src_lang="eng_Latn")
    texts = (pairs.text / "test.en").read_text(encoding="utf-8").splitlines()
    found = own.eval().generate(
        **tokenizer(texts, return_tensors="pt", padding=True),
        forced_bos_token_id=tokenizer.convert_tokens_to_ids("deu_Latn"),
        max_length=2 + 8,
        do_sample=False,
    )
    expected = tokenizer.batch_decode(found, skip_special_tokens=True)
    common = ["--user-dir", USER_DIR, "--path", checkpoint, "--beam 1 --max-len-b 8"]
    common += ["--bpe hf_tokenizer", "--hf-tokenizer", pairs.model, "--min-len 0"]
    written = commands.succeed(
        *["fairseq-generate", pairs.data, *common, "--required-batch-size-multiple 1"],
    )
    assert [written.lines("D-")[i] for i in range(len(texts))] == expected
    written = commands.succeed(
        *["fairseq-interactive", pairs.data, *common, "--hf-source-lang eng_Latn"],
        *["--source-lang en --target-lang de --input", pairs.text / "test.en"],
    )
    assert [written.lines("D-")[i] for i in range(len(texts))] == expected


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            "--kl-weight 0.05 --kl-target 0.5 --rescoring-dropout", marks=pytest.mark.slow
        ),
        "--objective ppo --ppo-level token --mle-weight 0.1 --checkpoint-activations",
    ],
)
def test_resumed_equals_uninterrupted(more, commands, pairs, tmp_path):
    """From the checkpoint after update 4 of 8, which says what the model is; also from sources
    alone, as the README makes them."""
    if "--mle-weight" not in more:
        alone = binarize(commands, pairs.ids, tmp_path / "alone", "--only-source")
        shutil.copy(pairs.ids / "dict.de.txt", alone)
        pairs = replace(pairs, data=alone)

    def run(folder, arch=True):
        given = options(pairs, folder, more, "--save-interval-updates 4 --max-update 8")
        named = ("--arch hf_seq2seq", "--hf-model", pairs.model)
        return commands.succeed(*[word for word in given if arch or word not in named])

    whole = run(tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    checkpoint = next((tmp_path / "whole").glob("checkpoint_*_4.pt"))
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    resumed = run(tmp_path / "resumed", arch=False)
    expected = comparable(whole, 4)
    assert len(expected) > 3 and comparable(resumed, 4) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")


def test_likelihood(commands, tmp_path):
    """Marian's kind, whose pad begins texts and is forbidden: fairseq's own task and criterion."""
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    tokenizer = marian(model / "parts")
    tokenizer.save_pretrained(model)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    size = dict(vocab_size=pad + 1, decoder_start_token_id=pad, pad_token_id=pad, eos_token_id=end)
    save(model, "marian", tokenizer=False, **size)
    settings = transformers.GenerationConfig.from_pretrained(model)
    settings.bad_words_ids, settings.forced_eos_token_id = [[pad]], end
    settings.save_pretrained(model)
    pairs = make_pairs(commands, tmp_path, str(model))
    result = commands.succeed(
        *["fairseq-train", pairs.data, "--user-dir", USER_DIR, "--save-dir", tmp_path / "mle"],
        *["--task translation --arch hf_seq2seq --lr 1e-2 --max-epoch 6", COMMON],
        *["--criterion label_smoothed_cross_entropy --label-smoothing 0.1"],
        *["--hf-model", model, "--no-epoch-checkpoints"],
    )
    losses = [line["nll_loss"] for line in result.logged("valid")]
    assert losses[-1] < 0.85 * losses[0] and result.logged("valid")[-1]["loss"] < 20
    start = ["--finetune-from-model", tmp_path / "mle" / "checkpoint_best.pt"]
    given = [word for word in options(pairs, tmp_path / "rl") if "deu_Latn" not in str(word)]
    more = "--task esrl_translation --criterion esrl --lr 5e-3 --max-update 1 --reward chrf"
    result = commands.succeed(*given, more, *start)
    assert result.logged("valid")[0]["reward"] > 0.01


def test_refusals(commands, pairs, tmp_path):
    """One sentence each, and nothing is saved."""
    given = [str(word) for word in options(pairs, tmp_path / "run", "--max-update 1")]
    transformers.AutoConfig.for_model("llama", vocab_size=11).save_pretrained(tmp_path / "llama")
    other = save(tmp_path / "other", "bart")
    for split in ("train", "valid"):
        for side in ("en", "de"):
            shutil.copy(pairs.ids / f"{split}.{side}", tmp_path / f"{split}.{side}")
    with open(tmp_path / "train.de", "a", encoding="utf-8") as file:
        file.write("5 999\n")
    with open(tmp_path / "train.en", "a", encoding="utf-8") as file:
        file.write("5 6\n")
    for name in ("dict.en.txt", "dict.de.txt"):
        shutil.copy(pairs.ids / name, tmp_path / name)
    for side in ("en", "de"):
        shutil.copy(tmp_path / f"valid.{side}", tmp_path / f"test.{side}")
    unknown = binarize(commands, tmp_path, tmp_path / "unknown")

    def changed(old, new):
        return [word.replace(old, str(new)) for word in given]

    for words, sentence in [
        (changed("esrl_translation", "translation"), "choose --task esrl_translation"),
        ([*given, "--hf-model", tmp_path / "llama"], "choose --arch hf_causal_lm with --task esrl"),
        (
            [*changed("--hf-target-lang deu_Latn", ""), "--hf-model", other],
            "is not that of the model",
        ),
        (changed("--hf-target-lang deu_Latn", ""), "choose one with --hf-target-lang"),
        (changed(str(pairs.data), unknown), "train.de, line 61 has the word <unk>"),
    ]:
        assert sentence in refused(commands, *words)
        assert not list((tmp_path / "run").glob("*"))
    result = tool(
        "data", "--hf-model", pairs.model, "--out", tmp_path / "new", pairs.ids / "train.en"
    )
    assert result.returncode == 1 and "give -s and -t" in result.stderr.splitlines()[-1]
