"""``python -m esrl_fairseq.rewards``: rewards of files, as a user types it."""

import runpy
import sys

import numpy as np
import pytest
import sacrebleu

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward

TEXTS = {
    "source": ["ein hund", "zwei katzen", "ein haus"],
    "reference": ["a dog runs", "two cats", "a house"],
    "second": ["a dog is running", "", "one house stands there"],
    "first": ["a dog", "two cats", ""],
    "other": ["a dog runs", "cats", "one house"],
}


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Call the command in a folder with TEXTS; the lines that it prints, as words."""
    monkeypatch.chdir(tmp_path)
    for name, lines in TEXTS.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["rewards", *words])
        runpy.run_module("esrl_fairseq.rewards", run_name="__main__")
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return call


def test_means_and_differences(ask):
    title, first, other = ask(
        "--reward", "chrf", "--references", "reference", "--", "first", "other"
    )
    reward = build_reward("chrf")
    lists = [[text] for text in TEXTS["reference"]]
    scores = {name: reward(TEXTS["source"], TEXTS[name], lists) for name in ("first", "other")}
    assert " ".join(title) == f"{reward.signature()}, 3 lines"
    assert first == ["first", f"{scores['first'].mean():.4f}"]
    change = scores["other"].astype(float) - scores["first"]
    half = 1.96 * np.sqrt(np.sum((change - change.mean()) ** 2) / 2 / 3)
    words = [f"{scores['other'].mean():.4f}", f"{change.mean():+.4f}", "±", f"{half:.4f}"]
    assert other == ["other", *words]


LONG = {
    "one": ["a dog runs to a house", "two cats sleep in it", "one house stands there"],
    "more": ["a dog is running to a house", "", "there stands a red house"],
    "first": ["a dog runs in the house", "cats sleep on it", "house"],  # no 4-gram is right
    "other": ["a dog is running to the house", "two cats sleep", "one house stands there now"],
}


def test_the_score_of_a_corpus(ask, tmp_path):
    """sacrebleu's of each file, in a sum beside a mean; the interval is of the derivatives."""
    for name, lines in LONG.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    options = ("--reward", "corpus-bleu:2+length", "--references", "one", "more", "--by-line")
    title, first, other, *lines = ask(*options, "--", "first", "other")
    lists = [[text for text in texts if text] for texts in zip(LONG["one"], LONG["more"])]
    streams = [LONG["one"], [text or None for text in LONG["more"]]]
    reward, length = build_reward("corpus-bleu:2+length"), build_reward("length")
    values, scores = [], []
    for name in ("first", "other"):
        bleu = sacrebleu.corpus_bleu(LONG[name], streams).score / 100
        mean = length([""] * 3, LONG[name], lists).astype(float).mean()
        values.append(2 * bleu + mean)
        scores.append(reward([""] * 3, LONG[name], lists))
        assert bleu > 0.1
    assert " ".join(title) == f"{reward.signature()}, 3 lines"
    assert first == ["first", f"{values[0]:.4f}"]
    half = 1.96 * np.std(scores[1].astype(float) - scores[0], ddof=1) / np.sqrt(3)
    words = [f"{values[1]:.4f}", f"{values[1] - values[0]:+.4f}", "±", f"{half:.4f}"]
    assert other == ["other", *words]
    assert lines == [[str(n), f"{a:.4f}", f"{b:.4f}"] for n, a, b in zip((1, 2, 3), *scores)]


def test_several_references_and_weights(ask):
    words = (
        "--reward",
        "chrf:0.5+length:0.5",
        "--references",
        "reference",
        "second",
        "--",
        "other",
    )
    _, other = ask(*words)
    lists = [[text for text in row if text] for row in zip(TEXTS["reference"], TEXTS["second"])]
    values = build_reward("chrf:0.5+length:0.5")(TEXTS["source"], TEXTS["other"], lists)
    assert other == ["other", f"{values.mean():.4f}"]


def test_sources_reach_the_reward(ask, tmp_path, monkeypatch):
    (tmp_path / "seen.py").write_text(
        "def share(sources, hypotheses, references):\n"
        "    return [s == 'ein haus' and h == 'one house' for s, h in zip(sources, hypotheses)]\n"
        "share.needs_references = False\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    with (tmp_path / "seen.py").open("a") as file:
        file.write("share.needs_sources = True\n")
    with pytest.raises(EsrlError, match="'python:seen.share' needs the sources: give --sources"):
        ask("--reward", "python:seen.share", "other")
    _, other = ask("--reward", "python:seen.share", "--sources", "source", "other")
    assert other == ["other", "0.3333"]


def test_functions_get_the_references_that_there_are(ask, tmp_path, monkeypatch):
    """Without --references, and with empty lines; one that needs them fails with a hint."""
    (tmp_path / "mine.py").write_text(
        "def count(sources, hypotheses, references):\n    return list(map(len, references))\n"
        "def first(sources, hypotheses, references):\n"
        "    return [texts[0] == h for texts, h in zip(references, hypotheses)]\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    for references, mean in (([], 0), (["second"], 2 / 3), (["reference", "second"], 5 / 3)):
        given = ["--references", *references, "--"] if references else []
        _, other = ask("--reward", "python:mine.count", *given, "other")
        assert other == ["other", f"{mean:.4f}"]
    with pytest.raises(
        EsrlError, match="IndexError.*; the data have no references for other, line 2:"
    ):
        ask("--reward", "python:mine.first", "--references", "second", "--", "other")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--reward", "bleu", "other"], "needs references: give --references"),
        (["--reward", "repetition", "gone"], "gone cannot be read"),
        (["--reward", "repetition", "first", "short"], "short has 1 lines, but the first .* has 3"),
        (["--reward", "repetition", "empty"], "empty has no lines"),
        (["--reward", "bleu", "--references", "short", "--", "other"], "short has 1 lines"),
        (["--reward", "blue", "other"], "unknown reward 'blue' .did you mean 'bleu'"),
    ],
)
def test_errors_are_sentences(ask, tmp_path, words, sentence):
    (tmp_path / "short").write_text("a\n")
    (tmp_path / "empty").write_text("")
    with pytest.raises(EsrlError, match=sentence):
        ask(*words)


def test_unknown_words_of_files_match_nothing(ask, tmp_path):
    """As in training, although fairseq-generate prints both with the same letters."""
    (tmp_path / "unk").write_text("a <unk> runs\n<unk>\n<unk> <unk> house\n")
    (tmp_path / "unk.ref").write_text("a <<unk>> runs\n<unk> cats\n<<unk>> house\n")
    for name in ("bleu", "chrf"):
        reward = build_reward(name)
        hypotheses = ["a QQQQ runs", "QQQQ", "QQQQ QQQQ house"]
        references = [["a XXZX runs"], ["XXZX cats"], ["XXZX house"]]
        expected = reward([""] * 3, hypotheses, references)
        assert expected[1] == 0
        _, row = ask("--reward", name, "--references", "unk.ref", "--", "unk")
        assert row == ["unk", f"{expected.mean():.4f}"]


SUBWORDS = {
    "subword_nmt": ["the c@@ at", "two cats", "a ho@@ use"],
    "sentencepiece": ["▁the ▁c at", "▁two ▁cats", "▁a ▁ho use"],
}


@pytest.mark.parametrize("right", SUBWORDS)
def test_subwords_in_files(right, ask, tmp_path, caplog):
    """Refused by default, joined as one says, warned of where they are to stay."""
    (tmp_path / "split").write_text("".join(f"{line}\n" for line in SUBWORDS[right]))
    (tmp_path / "whole").write_text("the cat\ntwo cats\na house\n")
    chrf, option = ("--reward", "chrf"), "--reward-post-process"
    with pytest.raises(EsrlError, match=f"^split, line 1 has sub-words.*{option} {right} to"):
        ask(*chrf, "--references", "whole", "--", "split")
    with pytest.raises(EsrlError, match="^split, line .* has sub-words"):
        ask(*chrf, "--references", "split", "--", "whole")
    other = next(value for value in SUBWORDS if value != right)
    with pytest.raises(EsrlError, match=f"does not join .*split, line.*: give {option} {right}"):
        ask(*chrf, option, other, "--references", "split", "--", "split")
    _, row = ask(*chrf, option, right, "--references", "split", "--", "split")
    assert row == ["split", "1.0000"]
    _, row = ask("--reward", "repetition", option, "none", "split")
    assert "none leaves the sub-words of split, line" in caplog.text
    with pytest.raises(EsrlError, match="sentencepeice'.*did you mean 'sentencepiece'"):
        ask(*chrf, option, "sentencepeice", "--references", "whole", "--", "whole")


def test_joining_files(ask, tmp_path):
    """References and sources, too; what is joined to nothing is an empty reference."""
    (tmp_path / "hyp").write_text("▁the ▁c at\n▁two ▁cats\n")
    (tmp_path / "ref").write_text("▁the ▁c at\n▁\n")
    words = ["--reward", "chrf", "--reward-post-process", "sentencepiece"]
    with pytest.raises(EsrlError, match="^ref, line 2 is empty, but the reward 'chrf' needs"):
        ask(*words, "--references", "ref", "--", "hyp")
    _, row = ask(*words, "--references", "ref", "hyp", "--", "hyp")
    assert row == ["hyp", "1.0000"]


def test_empty_references_are_named(ask, tmp_path):
    for name in ("ref", "ref2"):
        (tmp_path / name).write_text({"ref": "a\n\n \n", "ref2": "\n\nb\n"}[name])
    with pytest.raises(EsrlError, match="^ref, line 2 is empty .the first of 2 such lines., but"):
        ask("--reward", "bleu", "--references", "ref", "--", "first")
    with pytest.raises(EsrlError, match="^ref, line 2 is empty, as it is in the other files"):
        ask("--reward", "bleu", "--references", "ref", "ref2", "--", "first")


def test_failing_lines_are_named(ask, tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(
        "def f(sources, hypotheses, references):\n"
        "    return [float('nan') if text == 'one house' else 0.5 for text in hypotheses]\n"
        "f.needs_references = False\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(EsrlError, match="returned nan for other, line 3 .input"):
        ask("--reward", "python:picky.f", "first", "other")


@pytest.mark.parametrize(
    "words",
    [
        ["--references", "reference", "second", "--", "other"],
        ["other", "--references", "reference", "second"],
        ["--references", "reference", "--references", "second", "--", "other"],
    ],
)
def test_ways_to_give_references(words, ask):
    lists = [[text for text in row if text] for row in zip(TEXTS["reference"], TEXTS["second"])]
    values = build_reward("bleu")(TEXTS["source"], TEXTS["other"], lists)
    assert ask("--reward", "bleu", *words)[1] == ["other", f"{values.mean():.4f}"]


def test_hypotheses_taken_for_references(ask, capsys):
    with pytest.raises(SystemExit) as error:
        ask("--reward", "bleu", "--references", "reference", "second", "other")
    assert error.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "HYPOTHESES" in sentence and "put -- before the hypotheses" in sentence
