"""Sources without references: rewards that need none train and validate; others are refused."""

import shutil

import pytest
from command_lines import FRESH, JOINED, MODEL, USER_DIR, esrl_options
from test_cli_train import largest_difference, parameters


@pytest.fixture(scope="module")
def monolingual(commands, corpus):
    """The corpus' source side, and the target's dictionary."""
    data = commands.folder / "monolingual"
    prefixes = " ".join(f"--{split}pref {corpus.text / split}" for split in ("train", "valid"))
    commands.succeed(
        "fairseq-preprocess",
        "--only-source --source-lang de --target-lang en",
        *[prefixes, "--destdir", data, "--srcdict", corpus.dictionary],
    )
    shutil.copy(corpus.data / "dict.en.txt", data)
    assert not list(data.glob("*.de-en.en.*"))
    return data


def options(data, folder, mle, *more):
    start = [*esrl_options(data, folder), MODEL, JOINED, FRESH, "--restore-file", mle]
    return [*start, "--max-update 12 --num-samples 4 --reward", "repetition", *more]


def run(commands, data, folder, mle, *more):
    return commands.succeed("fairseq-train", *options(data, folder, mle, *more))


def refused(commands, *given):
    """What a refused command said."""
    result = commands.run("fairseq-train", *given)
    assert result.returncode not in (0, -9)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    return result.stderr.splitlines()[-1]


SHORT = """
def short(sources, hypotheses, references):
    assert not any(references)
    return [1 / (1 + len(text.split())) for text in hypotheses]

short.range = (0, 1)
short.needs_references = False


def near(sources, hypotheses, references):  # says nothing of itself
    lengths = [len(texts[0].split()) if texts else 5 for texts in references]
    return [-abs(len(text.split()) - best) for text, best in zip(hypotheses, lengths)]


def first(sources, hypotheses, references):
    return [float(texts[0] == text) for text, texts in zip(hypotheses, references)]


def strict(sources, hypotheses, references):
    return [0.5] * len(hypotheses)

strict.needs_references = True
"""


@pytest.fixture(scope="module", autouse=True)
def functions(commands):
    (commands.folder / "mono_reward.py").write_text(SHORT)


@pytest.mark.parametrize(
    "more",
    [
        "--capability entropy",
        "--capability reward --objective rloo --min-samples 2",
        "--capability none --objective ppo --ppo-passes 2 --reward python:mono_reward.short",
        "--reward python:mono_reward.near",
    ],
)
def test_training_and_validation(more, commands, monolingual, mle, tmp_path):
    """The last one has all defaults, and a function that does not say what it needs."""
    result = run(
        commands,
        monolingual,
        tmp_path,
        mle,
        *[more, "--best-checkpoint-metric reward --maximize-best-checkpoint-metric"],
    )
    for line in result.logged("valid"):
        assert ("near" in more or 0 < line["reward"] <= 1) and line["loss"] == pytest.approx(
            -line["reward"], abs=1e-4
        )
        assert "ppl" not in line and "length_ratio" not in line
    assert result.logged("valid")[-1]["best_reward"] == max(
        line["reward"] for line in result.logged("valid")
    )
    last = result.logged("train_inner")[-1]
    assert "length_ratio" not in last
    assert ("capability" in last) == ("entropy" in more or "reward --obj" in more)
    assert ("train has no target side: the reward gets no ref" in result.stdout) == ("near" in more)
    assert "did not log a 'loss'" not in result.stdout + result.stderr
    assert largest_difference(parameters(mle), parameters(tmp_path / "checkpoint_last.pt")) > 0


def test_the_best_checkpoint_by_default_is_the_one_with_most_reward(
    commands, monolingual, mle, tmp_path
):
    result = run(commands, monolingual, tmp_path, mle, "--capability entropy --max-epoch 2")
    lines = result.logged("valid")
    assert lines[-1]["best_loss"] == min(line["loss"] for line in lines)
    assert lines[-1]["best_loss"] == pytest.approx(-max(line["reward"] for line in lines), abs=1e-3)


def test_the_reward_is_that_of_data_with_references(commands, corpus, monolingual, mle, tmp_path):
    """Validated on the same sources, the same model has the same reward."""
    logs = [
        run(commands, data, tmp_path / str(i), mle, "--capability none --max-update 1 --lr 1e-12")
        for i, data in enumerate((monolingual, corpus.data))
    ]
    without, with_references = (log.logged("valid")[-1] for log in logs)
    assert without["reward"] == with_references["reward"]
    assert "ppl" in with_references and "length_ratio" in with_references


@pytest.mark.parametrize(
    "more, words",
    [
        (
            "--elimination-ratio 0.3",
            "--capability bleu needs references: choose --capability ent",
        ),
        ("--max-sample-temperature 1.2", "--capability bleu needs references: choose --capabili"),
        ("--reward python:mono_reward.strict", "--reward python:mono_reward.strict needs ref"),
        ("--reward repetition+length", "--reward repetition+length needs references: choose a"),
        ("--capability entropy --mle-weight 0.3", "--mle-weight 0.3 needs references: leave it"),
        ("--capability entropy --eval-bleu", "--eval-bleu needs references: leave it out"),
    ],
)
def test_what_needs_references(more, words, commands, monolingual, mle, tmp_path):
    sentence = refused(commands, *options(monolingual, tmp_path, mle, more))
    assert "has no target side, but " + words in sentence, sentence
    assert not list(tmp_path.glob("*.pt"))


def test_functions_that_fail_without_references(commands, monolingual, corpus, mle, tmp_path):
    """The sentence says why; with a target side the same function works."""
    given = options(monolingual, tmp_path, mle, "--reward python:mono_reward.first")
    result = commands.run("fairseq-train", *given)
    assert result.returncode == 1
    sentence = result.stderr.splitlines()[-1]
    assert "raised IndexError: list index out of range for " in sentence
    assert "; the data have no references for " in sentence
    other = tmp_path / "other"
    result = run(
        commands, corpus.data, other, mle, "--reward python:mono_reward.first --max-update 1"
    )
    assert "has no target side" not in result.stdout


def test_missing_dictionary(commands, monolingual, mle, tmp_path):
    data = shutil.copytree(monolingual, tmp_path / "data")
    (data / "dict.en.txt").unlink()
    sentence = refused(commands, *options(data, tmp_path / "run", mle))
    assert "there is no dictionary" in sentence and "dict.en.txt" in sentence
    sentence = refused(
        commands,
        *options(tmp_path / "typo", tmp_path / "run", mle, "--source-lang de --target-lang en"),
    )
    assert sentence.endswith(
        f"there is no folder {tmp_path / 'typo'}: give the folder that fairseq-preprocess wrote "
        "(its --destdir)"
    )


def test_generate(commands, monolingual, mle):
    """Stock commands read such data, too."""
    generated = commands.succeed(
        *["fairseq-generate", monolingual, "--user-dir", USER_DIR, "--path", mle],
        "--task esrl_translation --gen-subset valid --required-batch-size-multiple 1",
    )
    assert len(generated.lines("H-")) == 20
