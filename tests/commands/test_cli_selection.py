"""``--rescored-share`` through the command line: its logs, and that a run goes on as it was."""

import pytest
from command_lines import JOINED, MODEL, esrl_options
from test_cli_ppo import copy_of
from test_cli_resume import comparable, same_model

SHARE = 0.3
CASES = {
    "draws": "--objective fused --risk-candidates draws --selection mixed --update-freq 2",
    "kl": "--objective rloo --selection unbiased --kl-weight 0.05 --elimination-ratio 0.5",
    "ppo": "--objective ppo --ppo-passes 3 --selection top --kl-weight 0.05 --rescoring-dropout",
}


def options(corpus, mle, folder, *more):
    """The same command starts and resumes a run; an epoch has 10 batches."""
    return [
        *[*esrl_options(corpus.data, folder), MODEL, JOINED, "--finetune-from-model", mle],
        *[f"--num-samples 6 --rescored-share {SHARE} --max-update 12", *more],
    ]


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, commands, corpus, mle, tmp_path):
    """From the middle of an epoch, between two of PPO's passes."""

    def run(folder):
        given = options(corpus, mle, folder, CASES[case], "--save-interval-updates 4")
        return commands.succeed("fairseq-train", *given)

    whole = run(tmp_path / "whole")
    resumed = run(copy_of(tmp_path / "whole" / "checkpoint_1_4.pt", tmp_path / "resumed"))
    expected = comparable(whole, 4)
    assert len(expected) > 8 and comparable(resumed, 4) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")
    for line in whole.logged("train_inner"):
        assert 0 < line["chosen_tokens"] <= SHARE + 0.02
        assert line["chosen_tokens"] < line["kept_squares"] <= 1
        assert "kl" in line or "kl" not in CASES[case]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case, commands, corpus, mle, tmp_path):
    """Each has its own budget; a resumed run is the same, and both ranks end with one model."""

    def run(folder):
        more = (CASES[case], "--update-freq 1 --save-interval-updates 4")
        return commands.two_ranks(
            lambda rank: ["fairseq-train", *options(corpus, mle, folder, *more)]
        )[0]

    whole = run(tmp_path / "whole")
    resumed = run(copy_of(tmp_path / "whole" / "checkpoint_1_4.pt", tmp_path / "resumed"))
    assert len(comparable(whole, 4)) > 8 and comparable(resumed, 4) == comparable(whole, 4)
    assert same_model(tmp_path / "whole", tmp_path / "resumed")
    for line in whole.logged("train_inner"):
        assert 0 < line["chosen_tokens"] <= SHARE + 0.02


def test_a_share_that_buys_nothing_is_warned_of(commands, corpus, mle, tmp_path):
    """Once, and the run goes on; the logs say that nothing was learnt."""
    tiny = "--objective rloo --selection unbiased --rescored-share 0.0001 --disable-validation"
    result = commands.succeed("fairseq-train", *options(corpus, mle, tmp_path / "run", tiny))
    assert result.stdout.count("--rescored-share 0.0001 is so little of a batch") == 1
    lines = result.logged("train_inner")
    assert all(line["gnorm"] == line["chosen_rows"] == 0 for line in lines[:6])
    assert same_model(tmp_path / "run", mle.parent)
