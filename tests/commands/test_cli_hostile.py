"""A checkpoint whose configuration holds Python: no command runs it, each says why in a line."""

import argparse
import io
import runpy
import sys

import pytest
import torch
from command_lines import COMMON, JOINED, MODEL, USER_DIR, esrl_options
from fairseq.data import Dictionary

import esrl_fairseq  # noqa: F401 (torch's safe loader then knows what fairseq's checkpoints hold)
from esrl_fairseq.errors import EsrlError


@pytest.fixture(scope="module")
def files(commands, mle, corpus):
    """Hostile ones: a translation model's, a reward model's; and what their Python would make."""
    ran = commands.folder / "ran"
    state = torch.load(mle, weights_only=True)
    state["cfg"]["model"].decoder_xformers_att_config = f"open({str(ran)!r}, 'w')"
    found = {"ran": ran, "model": commands.folder / "hostile.pt", "rm": commands.folder / "rm.pt"}
    torch.save(state, found["model"])
    dictionary = io.StringIO()
    Dictionary.load(str(corpus.dictionary)).save(dictionary)
    state["task_state"] = {"dictionary": dictionary.getvalue(), "codes": ""}
    task = dict(_name="esrl_reward_model", data=str(corpus.data), max_source_positions=1024)
    state["cfg"]["task"] = argparse.Namespace(**task, source_lang="de", target_lang="en")
    torch.save(state, found["rm"])
    return found


LOOK = ["--user-dir", USER_DIR, "--beam 1 --path"]
VALIDATE = ["--batch-size 20 --task translation --path"]
FIT = [MODEL, JOINED, "--max-update 1 --no-save"]
ROADS = {
    "generate": ["fairseq-generate", "DATA", *LOOK, "MODEL"],
    "ensemble": ["fairseq-generate", "DATA", *LOOK, "MLE:MODEL"],
    "interactive": ["fairseq-interactive", "DATA", "-s de -t en", *LOOK, "MODEL"],
    "validate": ["fairseq-validate", "DATA", *LOOK[:2], *VALIDATE, "MODEL"],
    "lm-path": ["fairseq-generate", "DATA", *LOOK, "MLE", "--lm-path", "MODEL"],
    "finetune": ["fairseq-train", "TRAIN", *FIT, "--finetune-from-model", "MODEL"],
    "architecture": ["fairseq-train", "TRAIN", "--finetune-from-model", "MODEL"],
    "restore": ["fairseq-train", "TRAIN", *FIT, "--restore-file", "MODEL"],
    "kl-reference": [
        *["fairseq-train", "TRAIN", *FIT, "--finetune-from-model", "MLE", "--kl-weight 0.1"],
        *["--kl-reference", "MODEL"],
    ],
    "reward-model": ["fairseq-train", "TRAIN", *FIT, "--reward model --reward-model", "RM"],
    "stock-criterion": [
        *["fairseq-train", "DATA", "--user-dir", USER_DIR, COMMON, *FIT],
        *["--lr 1e-3 --restore-file", "MODEL"],
    ],
}


LONG = ("lm-path", "architecture", "stock-criterion")


@pytest.mark.parametrize(
    "road", [pytest.param(road, marks=pytest.mark.long if road in LONG else ()) for road in ROADS]
)
def test_no_python_of_a_checkpoint_is_run(road, files, commands, corpus, mle, tmp_path):
    """Without the refusal most of these roads run it."""
    train = esrl_options(corpus.data, tmp_path / "run")
    words = {"DATA": [corpus.data], "TRAIN": train, "MLE": [mle], "RM": [files["rm"]]}
    words |= {"MODEL": [files["model"]], "MLE:MODEL": [f"{mle}:{files['model']}"]}
    options = [word for option in ROADS[road] for word in words.get(option, [option])]
    result = commands.run(*options, stdin="katze sieht haus\n")
    assert not files["ran"].exists()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    hostile = files["rm" if road == "reward-model" else "model"]
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith(f"{hostile} is refused, and nothing of it was run: its config")
    assert "model.decoder_xformers_att_config the Python" in sentence


def test_rewards_command(files, tmp_path, monkeypatch):
    (tmp_path / "lines").write_text("a cat\n")
    words = f"rewards --reward model --reward-model {files['rm']} --sources lines -- lines"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(EsrlError, match="rm.pt is refused"):
        runpy.run_module("esrl_fairseq.rewards", run_name="__main__")
    assert not files["ran"].exists()


def test_a_reward_of_the_checkpoint_is_code(commands, corpus, mle, tmp_path):
    """fairseq-validate builds its criterion: the function runs only if the user names it."""
    ran = commands.folder / "ran_by_reward"
    (commands.folder / "hostile_reward.py").write_text(
        f"open({str(ran)!r}, 'w')\ndef f(sources, hypotheses, references):\n    "
        "return [0.5] * len(hypotheses)\n"
    )
    run = esrl_options(corpus.data, tmp_path / "run")
    name = "python:hostile_reward.f"
    commands.succeed(
        *["fairseq-train", *run, *FIT[:2], "--max-update 1 --disable-validation --reward", name],
        *["--finetune-from-model", mle],
    )
    ran.unlink()
    path = tmp_path / "run" / "checkpoint_last.pt"
    assert torch.load(path, weights_only=True)["cfg"]["criterion"]["reward"] == name
    validate = ["fairseq-validate", corpus.data, *LOOK[:2], "--task esrl_translation"]
    validate += ["--batch-size 20 --path", path]
    refused = commands.run(*validate)
    assert refused.returncode == 1 and not ran.exists()
    assert refused.stderr.splitlines()[-1] == (
        f"the reward {name} runs code, and it is the checkpoint that names it: if you trust it, "
        f"name it yourself, with --criterion esrl --reward {name}"
    )
    commands.succeed("fairseq-generate", corpus.data, *LOOK, path)
    assert not ran.exists()
    own = commands.succeed(*validate, "--criterion esrl --reward", name)
    assert ran.exists() and "reward 0.5" in own.stdout + own.stderr
