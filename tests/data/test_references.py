"""Several references of an input: from text files beside the data to rewards and logs."""

import shutil

import numpy as np
import pytest
import sacrebleu
import torch
from command_lines import JOINED, MODEL, USER_DIR, esrl_options
from helpers import EOS, A, B, make_batch, make_criterion, make_model, make_task
from test_cli_resume import comparable, load

from esrl_fairseq.data.references import FURTHER
from esrl_fairseq.data.text import UNK_IN_REFERENCE
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.rewards.scorer import Scorer
from esrl_fairseq.task import EsrlTranslationConfig, EsrlTranslationTask

HYPOTHESES = ("the cat sees a re@@ d ho@@ use", "ho@@ use tr@@ ee", "the dog", "")


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def shifted(lines, by):
    """Other lines of the same words, every third one empty."""
    return ["" if i % 3 == by % 3 else lines[(i + by) % len(lines)] for i in range(len(lines))]


@pytest.fixture
def data(corpus, tmp_path):
    """The binarized corpus with two more references of valid, and one of train."""
    folder = shutil.copytree(corpus.data, tmp_path / "data")
    for split, number in (("valid", 1), ("valid", 2), ("train", 1)):
        lines = shifted(lines_of(corpus.text / f"{split}.en"), number)
        write_lines(folder / f"{split}.de-en.en{number}", lines)
    return folder


def make_file_task(data, splits):
    cfg = EsrlTranslationConfig(data=str(data), source_lang="de", target_lang="en")
    cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1
    cfg.reward_references = splits
    task = EsrlTranslationTask.setup_task(cfg)
    task.trained_by_reward = True
    return task


def batch_of(task, split, ids):
    dataset = task.datasets[split]
    return dataset.collater([dataset[i] for i in ids])


def joined(line):
    return line.replace("@@ ", "")


def sentence_score(name, text, references):
    """The library's."""
    if name == "bleu":
        metric = sacrebleu.BLEU(effective_order=True)
        return metric.sentence_score(text, references).score / 100
    if name == "ter":
        return max(0, 1 - sacrebleu.TER().sentence_score(text, references).score / 100)
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    variants = ("rouge1", "rouge2", "rougeL") if name == "rouge" else (name,)
    metric = scorer.RougeScorer(variants, use_stemmer=True)
    return np.mean([value.fmeasure for value in metric.score_multi(references, text).values()])


@pytest.mark.parametrize("name", ["bleu", "ter", "rouge", "rougeL"])
def test_rewards_equal_the_libraries(name, corpus, data):
    """With all references of each input, in any order of the batch."""
    ids, expected = [7, 0, 3, 12, 4, 5], []
    columns = [lines_of(corpus.text / "valid.en")]
    columns += [lines_of(data / f"valid.de-en.en{number}") for number in (1, 2)]
    references = [[joined(lines[i]) for lines in columns if lines[i]] for i in range(20)]
    assert {len(references[i]) for i in ids} == {2, 3}
    task = make_file_task(data, "valid")
    task.load_dataset("valid")
    batch = batch_of(task, "valid", ids)
    order = batch["id"].tolist()
    tokens, rows = [], []
    for position, i in enumerate(order):
        for line in (*HYPOTHESES, columns[2][i] or "the"):
            tokens.append(task.target_dictionary.encode_line(line, add_if_not_exist=False).tolist())
            rows.append(position)
            expected.append(sentence_score(name, joined(line or ""), references[i]))
    scorer = Scorer(build_reward(name), task, "subword_nmt", None)
    assert scorer.references(batch) == [references[i] for i in order]
    scored = scorer.score(batch, tokens, rows)
    np.testing.assert_allclose(scored.rewards, expected, rtol=0, atol=1e-6)
    first = [len(references[order[row]][0].split()) for row in rows]
    assert scored.reference_words == sum(first)
    alone = Scorer(build_reward(name), task, "subword_nmt", None, first_reference=True)
    assert alone.references(batch) == [references[i][:1] for i in order]
    assert (alone.score(batch, tokens, rows).rewards < scored.rewards - 0.1).any()


@pytest.mark.parametrize("detokenizer", [None, "moses"])
def test_the_text_is_that_of_the_target_side(detokenizer, commands, corpus, tmp_path):
    """A copy of the target side gives equal texts; with unknown words, and joints that end it."""
    text = shutil.copytree(corpus.text, tmp_path / "text")
    lines = [line + (" zebra , re@@" if i % 4 == 0 else "") for i, line in enumerate(
        lines_of(corpus.text / "valid.en"))]  # fmt: skip
    write_lines(text / "valid.en", lines)
    data = tmp_path / "data"
    commands.succeed(
        "fairseq-preprocess",
        f"--source-lang de --target-lang en --validpref {text / 'valid'} --destdir {data}",
        f"--srcdict {corpus.dictionary} --tgtdict {corpus.dictionary}",
    )
    shutil.copy(text / "valid.en", data / "valid.de-en.en1")
    task = make_file_task(data, "valid")
    task.load_dataset("valid")
    scorer = Scorer(build_reward("bleu"), task, "subword_nmt", detokenizer)
    found = scorer.references(batch_of(task, "valid", range(20)))
    assert all(len(texts) == 2 and texts[0] == texts[1] for texts in found)
    assert sum(UNK_IN_REFERENCE in texts[1] for texts in found) == 5


def test_splits_that_are_not_named_have_one_reference(data):
    task = make_file_task(data, " valid, ")
    for split in ("train", "valid"):
        task.load_dataset(split)
    assert FURTHER in batch_of(task, "valid", [0, 1])
    assert FURTHER not in batch_of(task, "train", [0, 1])
    assert task.datasets["valid"].collater([]) == {}


def test_shards_have_their_own(corpus, data, tmp_path):
    """Training data of shard 2 in epoch 2; valid is always in the first."""
    other = shutil.copytree(data, tmp_path / "other")
    write_lines(other / "train.de-en.en1", ["the cat"] * 200)
    (other / "valid.de-en.en1").unlink()
    task = make_file_task(f"{data}:{other}", "train,valid")
    for epoch, expected in ((1, lines_of(data / "train.de-en.en1")[5]), (2, "the cat")):
        task.load_dataset("train", epoch=epoch)
        task.load_dataset("valid", epoch=epoch)
        assert batch_of(task, "train", [5])[FURTHER] == [[expected]]
        assert len(batch_of(task, "valid", [5])[FURTHER][0]) == 1


def test_generation_needs_no_further_reference(corpus):
    task = make_file_task(corpus.data, "valid")
    task.trained_by_reward = False
    task.load_dataset("valid")
    assert FURTHER not in batch_of(task, "valid", [0])


def no_file(data):
    for path in data.glob("valid.de-en.en[12]"):
        path.unlink()


def a_gap(data):
    (data / "valid.de-en.en1").rename(data / "valid.de-en.en3")


def a_line_too_few(data):
    path = data / "valid.de-en.en2"
    write_lines(path, lines_of(path)[:-1])


def whole_words(data):
    path = data / "valid.de-en.en2"
    write_lines(path, [line.replace("@@ ", "") for line in lines_of(path)])


def no_target(data):
    for ending in ("bin", "idx"):
        (data / f"valid.de-en.en.{ending}").unlink()


DAMAGES = {
    no_file: ["'valid'", "no further references", "valid.de-en.en1"],
    a_gap: ["'valid'", "from 1", "to 3", "number 1"],
    a_line_too_few: ["valid.de-en.en2", "19 lines", "20 inputs"],
    whole_words: ["valid.de-en.en2", "not in the dictionary", "0% of those of the target side"],
    no_target: ["'valid'", "no target side"],
}


def test_lines_that_joining_leaves_nothing_of(data):
    path = data / "valid.de-en.en2"
    lines = lines_of(path)
    write_lines(path, [*lines[:6], "@@ @@", *lines[7:]])
    (data / "dict.en.txt").write_text((data / "dict.en.txt").read_text() + "@@ 1\n")
    task = make_file_task(data, "valid")
    task.scorer = Scorer(build_reward("bleu"), task, "subword_nmt", None)
    with pytest.raises(EsrlError, match="en2, line 7 has no text, only '@@ @@': leave it empty"):
        task.load_dataset("valid")


@pytest.mark.parametrize("damage", DAMAGES)
def test_refusals(damage, data):
    damage(data)
    task = make_file_task(data, "valid")
    with pytest.raises(EsrlError) as error:
        task.load_dataset("valid")
    assert all(words in str(error.value) for words in DAMAGES[damage]), error.value


def test_a_name_that_nobody_loads_is_refused(data):
    task = make_file_task(data, "train,vaild")
    with pytest.raises(EsrlError, match="the split 'vaild' .did you mean 'valid'"):
        task.load_dataset("train")


def test_other_splits_of_similar_names_do_not_count(data):
    for name in ("valid1.de-en.en1", "valid.de-en.en4.bak", "valid.de-en.en04", "valid.de-en.en.4"):
        write_lines(data / name, ["x"])
    task = make_file_task(data, "valid")
    task.load_dataset("valid")
    assert len(task.datasets["valid"]) == 20


@pytest.mark.parametrize("reward", ["bleu", "chrf"])
def test_capability_compares_with_the_first_reference(reward):
    """Further references change the rewards, not the capability."""
    found = []
    for further in (None, ["a b b", "b", "a a b a"]):
        task = make_task(reward_references="train", num_samples=6, elimination_ratio=0.5)
        criterion, model = make_criterion(task, reward=reward), make_model().train()
        batch = make_batch()
        if further:
            batch[FURTHER] = [further] * len(batch["id"])
        torch.manual_seed(9)
        criterion(model, batch)
        task.rl.commit()
        found.append(np.array(task.rl.store.records))
    one, several = found
    np.testing.assert_array_equal(one["capability"], several["capability"])
    assert (several["reward_mean"] >= one["reward_mean"] - 1e-6).all()
    assert several["reward_mean"].mean() > one["reward_mean"].mean() + 0.05
    if reward == "bleu":  # with one reference they are the same
        np.testing.assert_allclose(one["capability"], one["reward_mean"], atol=1e-6)


def test_validation_counts_all_references():
    """A greedy output that is a further reference has the reward 1."""
    task = make_task(reward_references="train")
    criterion, model, batch = make_criterion(task), make_model().eval(), make_batch()
    criterion.eval()
    _, _, log = criterion(model, batch)
    scorer, outputs = criterion.scorer, []
    original = scorer.score
    scorer.score = lambda sample, best, rows: outputs.append(best) or original(sample, best, rows)
    criterion(model, batch)
    words = {A: "a", B: "b"}
    texts = [" ".join(words.get(i, "a") for i in row if i != EOS) or "a" for row in outputs[0]]
    batch[FURTHER] = [[text] for text in texts]
    exact = sum(all(i in (A, B, EOS) for i in row) and len(row) > 1 for row in outputs[0])
    _, _, several = criterion(model, batch)
    assert exact > 0 and several["valid_reward"] >= exact - 1e-6
    assert several["valid_reward"] > log["valid_reward"]
    assert several["valid_reference_words"] == log["valid_reference_words"]


def run_options(data, mle, save_dir):
    return [
        *[*esrl_options(data, save_dir), MODEL, JOINED, "--finetune-from-model", mle],
        "--reward-references train,valid --num-samples 4 --objective ppo --ppo-passes 3",
        "--save-interval-updates 7 --max-update 12",
    ]


@pytest.mark.long
def test_command_lines(commands, data, mle, tmp_path):
    """Rewards are higher than with one reference; a resumed run, between two passes of PPO, is one
    never interrupted; fairseq-generate works where the files are not."""
    whole = commands.succeed("fairseq-train", *run_options(data, mle, tmp_path / "whole"))
    single = commands.succeed(
        "fairseq-train", *run_options(data, mle, tmp_path / "single"), "--reward-references", ""
    )
    for name in ("train_inner", "valid"):
        assert whole.logged(name)[0]["reward"] > single.logged(name)[0]["reward"]
    (tmp_path / "resumed").mkdir()
    checkpoint = tmp_path / "whole" / "checkpoint_1_7.pt"
    shutil.copy(checkpoint, tmp_path / "resumed" / "checkpoint_last.pt")
    resumed = commands.succeed("fairseq-train", *run_options(data, mle, tmp_path / "resumed"))
    expected = comparable(whole, 7)
    assert len(expected) > 5 and comparable(resumed, 7) == expected
    one, other = (
        load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "resumed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    for path in data.glob("*.de-en.en[0-9]"):
        path.unlink()
    generated = commands.succeed(
        *["fairseq-generate", data, "--user-dir", USER_DIR, "--path", checkpoint],
        "--gen-subset valid --required-batch-size-multiple 1",
    )
    assert len(generated.lines("H-")) == 20
    refused = commands.run("fairseq-train", *run_options(data, mle, tmp_path / "refused"))
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert "--reward-references names the split 'valid'" in refused.stderr.splitlines()[-1]
