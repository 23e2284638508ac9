"""``--reward corpus-bleu``: what validation logs, where its counts come from, resume, ranks."""

import pytest
import sacrebleu
import torch
from command_lines import JOINED, MODEL, USER_DIR, esrl_options
from test_cli_resume import comparable, load, same_model

BEST = "--best-checkpoint-metric reward --maximize-best-checkpoint-metric"


def counts(folder):
    """The mean counts in a run's last checkpoint."""
    state = load(folder / "checkpoint_last.pt")["extra_state"]["EsrlTranslationTask"]
    return state["rl"]["corpus"]["corpus-bleu"]["mean"]


def options(corpus, mle, folder, *more, reward="corpus-bleu"):
    return [
        *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED, BEST],
        *["--finetune-from-model", mle, "--reward", reward, "--num-samples 4", *more],
    ]


def test_validation_logs_the_corpus_score(commands, corpus, mle, tmp_path):
    """Weighted with a mean over sentences; the best checkpoint is the one with the highest.

    The start model is validated in any case: its counts are those that the reward begins with.
    """
    result = commands.succeed(
        *options(corpus, mle, tmp_path, "--max-update 3 --validate-interval-updates 3"),
        "--batch-size-valid 6",
        *["--reward corpus-bleu:0.5+length:0.5 --reward-tokenize intl --lr 1e-3"],
        *["--reward-options corpus-bleu.statistics=validation,corpus-bleu.lowercase=true"],
    )
    assert "without effect" not in result.stdout + result.stderr
    out = commands.succeed(
        *["fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--task esrl_translation"],
        "--beam 1 --gen-subset valid --post-process subword_nmt --max-len-a 1.2 --max-len-b 10",
        "--batch-size 6 --required-batch-size-multiple 1",  # a search's limit is its batch's
        *["--path", tmp_path / "checkpoint_last.pt"],
    )
    found, targets = out.lines("H-"), out.lines("T-")
    texts = [[lines[i] for i in sorted(lines)] for lines in (found, targets)]
    bleu = sacrebleu.corpus_bleu(texts[0], [texts[1]], tokenize="intl", lowercase=True, force=True)
    sizes = [(len(h.split()), len(t.split())) for h, t in zip(*texts)]
    length = sum(min(pair) / max(pair) for pair in sizes) / len(sizes)
    logged = result.logged("valid")
    assert [line["num_updates"] for line in logged] == [0, 3]
    assert logged[-1]["reward"] == pytest.approx(bleu.score / 200 + length / 2, abs=6e-5)
    assert load(tmp_path / "checkpoint_last.pt")["extra_state"]["best"] == max(
        line["reward"] for line in logged
    )
    monitor = load(tmp_path / "checkpoint_last.pt")["extra_state"]["EsrlTranslationTask"]["monitor"]
    assert (monitor["valid_sum"], monitor["valid_rows"]) == (logged[-1]["reward"], 1)
    expected = [bleu.sys_len, bleu.ref_len, *bleu.counts, *bleu.totals]
    assert (counts(tmp_path) * len(sizes)).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "more",
    [
        "--update-freq 2",
        pytest.param(
            "--objective ppo --ppo-passes 2 --elimination-ratio 0.5", marks=pytest.mark.long
        ),
    ],
)
def test_resumed_equals_uninterrupted(more, commands, corpus, mle, tmp_path):
    """From the checkpoint after update 3 of 7. Without its counts it begins with a validation's."""

    def run(folder):
        length = "--save-interval-updates 3 --max-update 7 --validate-interval 9"
        return commands.succeed(*options(corpus, mle, tmp_path / folder, more, length))

    def resumed(folder, edit=lambda rl: None):
        (tmp_path / folder).mkdir()
        state = load(tmp_path / "whole" / "checkpoint_1_3.pt")
        edit(state["extra_state"]["EsrlTranslationTask"]["rl"])
        torch.save(state, tmp_path / folder / "checkpoint_last.pt")
        return run(folder)

    whole = run("whole")
    assert [line["num_updates"] for line in whole.logged("valid")][0] == 0
    expected = comparable(whole, 3)
    assert len(expected) > 3 and comparable(resumed("resumed"), 3) == expected
    assert same_model(tmp_path / "whole", tmp_path / "resumed")
    assert torch.equal(counts(tmp_path / "whole"), counts(tmp_path / "resumed"))

    forgot = resumed("forgot", lambda rl: rl.pop("corpus"))
    assert forgot.logged("valid")[0]["num_updates"] == 3
    assert not torch.equal(counts(tmp_path / "whole"), counts(tmp_path / "forgot"))


@pytest.mark.long
def test_two_ranks_equal_one(commands, corpus, mle, tmp_path):
    """Two ranks with a batch an update, and one with two: equal losses, scores and counts."""
    length = "--batch-size 10 --max-update 4 --validate-interval-updates 4"
    runs = [
        commands.succeed(*options(corpus, mle, tmp_path / "one", length, "--update-freq 2")),
        *commands.two_ranks(lambda rank: options(corpus, mle, tmp_path / "two", length)),
    ]
    losses = [[line["loss"] for line in run.logged("train_inner")] for run in runs[:2]]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    scores = [[line["reward"] for line in run.logged("valid")] for run in runs[:2]]
    assert len(scores[0]) == 2 and scores[0] == scores[1]
    one, two = (counts(tmp_path / name).tolist() for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-9)


REFUSED = {
    "--disable-validation": "--reward corpus-bleu begins with the counts of a validation",
    "--reward-options corpus-bleu.statistics=valid": "must be one of samples, validation",
}


@pytest.mark.parametrize("more", REFUSED)
def test_refused_in_a_sentence(more, commands, corpus, mle, tmp_path):
    result = commands.run(*options(corpus, mle, tmp_path, more))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert REFUSED[more] in result.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.pt"))


def test_a_random_start_is_refused(commands, corpus, tmp_path):
    """Its corpus BLEU is near 0, by the same rule as the other rewards in [0, 1]."""
    result = commands.run(
        *["fairseq-train", *esrl_options(corpus.data, tmp_path), MODEL, JOINED, BEST],
        "--reward corpus-bleu --check-start stop",
    )
    assert result.returncode == 1 and "validation reward of 0.0" in result.stderr.splitlines()[-1]
