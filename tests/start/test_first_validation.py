"""Which start models are refused, and which metrics can choose the best checkpoint."""

import math
from types import SimpleNamespace

import pytest
import torch

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.sampling_task import SamplingTask
from esrl_fairseq.start.first_validation import STOP, WARN, judge_start
from esrl_fairseq.start.metric import check_best_metric
from esrl_fairseq.start.source import NONE, RESUMED, STARTED, Start, find_start
from esrl_fairseq.task import EsrlTranslationTask

GIVEN = Start("mle.pt", "--finetune-from-model", STARTED)


def judge(reward, ppl, start=GIVEN, severity=STOP, comparable=True):
    stats = {"reward": reward} if ppl is None else {"reward": reward, "ppl": ppl}
    judge_start(start, stats, 6000, comparable, severity, "subword_nmt")


@pytest.mark.parametrize("reward, ppl", [(0.36, 5.0), (0.05, 900.0), (0.05, None), (0.4, 5999)])
def test_good_starts_pass(reward, ppl, caplog):
    judge(reward, ppl)
    assert not caplog.records


@pytest.mark.parametrize(
    "reward, ppl, words",
    [
        (0.0004, 53716.0, "6,000 words"),
        (0.3, 6001.0, "6,000 words"),
        (0.3, math.nan, "6,000 words"),
        (0.0004, 5.0, "nothing to learn from"),
        (0.0004, None, "nothing to learn from"),
    ],
)
def test_bad_starts_are_refused(reward, ppl, words, caplog):
    with pytest.raises(EsrlError) as refused:
        judge(reward, ppl)
    for word in (words, "mle.pt", "dictionary", "--reward-post-process (subword_nmt)"):
        assert word in str(refused.value)
    judge(reward, ppl, severity=WARN)
    assert words in caplog.text


def test_a_model_of_random_weights(caplog):
    with pytest.raises(EsrlError, match="random weights.*--finetune-from-model"):
        judge(0.0004, 53716.0, Start("", "", NONE))


def test_weak_starts_are_warned_of(caplog):
    judge(0.02, 300.0)
    assert "very low" in caplog.text


def test_a_reward_without_references_can_be_small(caplog):
    judge(0.0, None, comparable=False)
    assert not caplog.records


def run(metric, maximize=False, patience=-1, disabled=False):
    checkpoint = SimpleNamespace(
        best_checkpoint_metric=metric,
        maximize_best_checkpoint_metric=maximize,
        patience=patience,
    )
    dataset = SimpleNamespace(disable_validation=disabled)
    return SimpleNamespace(checkpoint=checkpoint, dataset=dataset)


def task(kind=EsrlTranslationTask, eval_bleu=False):
    made = kind.__new__(kind)
    made.cfg = SimpleNamespace(eval_bleu=eval_bleu)
    return made


class Counting(EsrlTranslationTask):
    """A task of the user's own, which logs more."""

    @staticmethod
    def reduce_metrics(outputs, criterion):
        """Nothing here."""


@pytest.mark.parametrize(
    "cfg, references, made",
    [
        (run("reward", True), True, task()),
        (run("loss"), False, task()),
        (run("ppl"), True, task()),
        (run("bleu", True), True, task(eval_bleu=True)),
        (run("length_ratio", True), True, task()),
        (run("mine"), True, task(Counting)),
        (run("mine", True, disabled=True), True, task()),
    ],
)
def test_metrics_that_can_choose(cfg, references, made):
    check_best_metric(cfg, made, references)


@pytest.mark.parametrize(
    "cfg, references, words",
    [
        (run("reward"), True, "--maximize-best-checkpoint-metric"),
        (run("reward", patience=3), True, "--patience"),
        (run("ppl", True), True, "highest ppl"),
        (run("ppl"), False, "choose one of loss, reward"),
        (run("bleu", True), True, "choose one of length_ratio, loss, ppl, reward"),
        (run("Reward", True), True, "choose one of"),
    ],
)
def test_metrics_that_cannot(cfg, references, words):
    with pytest.raises(EsrlError, match=words):
        check_best_metric(cfg, task(), references)


def test_the_likelihood_of_references_is_no_good_judge(caplog):
    check_best_metric(run("loss"), task(), True)
    assert "--best-checkpoint-metric reward" in caplog.text


def test_where_a_run_starts(tmp_path):
    def cfg(**given):
        given = {"restore_file": "checkpoint_last.pt", "finetune_from_model": None, **given}
        return SimpleNamespace(save_dir=str(tmp_path), **given)

    assert find_start(cfg()).kind == NONE
    assert find_start(cfg(restore_file="a.pt")) == Start("a.pt", "--restore-file", STARTED)
    assert find_start(cfg(restore_file="a.pt"), "-shard0").path == "a-shard0.pt"
    assert find_start(cfg(finetune_from_model="b.pt")).path == "b.pt"
    once = cfg(finetune_from_model="b.pt", continue_once="c.pt")
    assert find_start(once) == Start("c.pt", "--continue-once", STARTED)
    last = tmp_path / "checkpoint_last.pt"
    torch.save({}, last)
    assert find_start(cfg(finetune_from_model="b.pt")) == Start(str(last), "", RESUMED)
    assert find_start(once) == Start(str(last), "", RESUMED)
    assert isinstance(task(), SamplingTask)
