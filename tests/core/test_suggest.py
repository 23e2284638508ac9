"""What somebody meant who mistyped a name."""

import pytest

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.rewards import reward_names


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("blue", "bleu"),
        ("BLEU", "bleu"),
        ("rougel", "rougeL"),
        ("ROUGE-L", "rougeL"),
        ("rouge_1", "rouge1"),
        ("chfr", "chrf"),
        ("bert_score", "bertscore"),
        ("hf_reward", "hf-reward"),
        ("lenght", "length"),
    ],
)
def test_rewards(typed, meant):
    assert did_you_mean(typed, reward_names()) == f" (did you mean {meant!r}?)"


@pytest.mark.parametrize("typed", ["", "nonsense", "xyz", "0.5*ble"])
def test_nothing_is_like_it(typed):
    assert did_you_mean(typed, ["chrf", "ter"]) == ""
