"""The commands for one's own data run as they stand in README and docs/howto/own-data.md.

Only sizes are smaller: ``…`` becomes the options of a tiny model, and hundreds of updates a few.
"""

import shlex
import subprocess
import sys

import pytest
from command_lines import COMMON, JOINED, MODEL, USER_DIR, environment
from pages import parse

ROOT = USER_DIR.parent
SMALLER = {"400": "4", "50": "2", "64": "20"}
TINY = f"{MODEL} {JOINED} {COMMON} --lr 5e-3 --max-epoch 12 --no-epoch-checkpoints"


def first_block(page, title):
    """The commands of a section's first block: lists of words, without what they are piped to."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"{title}\n", 1)[1]
    lines = parse(section)[0][0].text.replace("\\\n", " ").splitlines()
    return [shlex.split(line.split(" #")[0].split("|")[0]) for line in lines]


@pytest.fixture
def here(commands, tmp_path):
    """Runs commands in a folder of a user's own."""
    (tmp_path / "esrl_fairseq").symlink_to(USER_DIR)
    return commands.in_folder(tmp_path)


def run(here, words):
    """One of the page's commands, in small."""
    words = [SMALLER.get(word, word) for word in words]
    if "…" in words:
        place = words.index("…")
        words[place : place + 1] = TINY.split()
    return here.succeed(words[0], *words[1:])


@pytest.mark.long
def test_own_data(here, corpus):
    """From two text files to two models and their BLEU."""
    for path in corpus.text.iterdir():
        (here.folder / path.name).symlink_to(path)
    loop = {}
    for words in first_block("docs/howto/own-data.md", "# Train on your own data"):
        if words[0].startswith("fairseq") and "$run" not in " ".join(words):
            run(here, words)
        elif words[0] == "for":
            loop = words[words.index("in") + 1 :]
        elif words[0] == "fairseq-generate":
            for name in (word.rstrip(";") for word in loop if word != "do"):
                found = run(here, [word.replace("$run", name) for word in words])
                assert "BLEU4 = " in found.stdout.splitlines()[-1]
    assert [word.rstrip(";") for word in loop][:2] == ["mle", "esrl"]


def test_readme(here, corpus, mle):
    """Five lines from a start model to a report that compares it with the best."""
    training, report = first_block("README.md", "## Your own data")
    (here.folder / "data-bin").symlink_to(corpus.data)
    (here.folder / "mle").mkdir()
    (here.folder / "mle" / "checkpoint_best.pt").symlink_to(mle)
    found = run(here, training)
    assert "→ best" in found.stdout + found.stderr
    pytest.importorskip("plotly", reason="extra report is not installed")
    assert report[0] == "esrl-report"  # the module is installed as that
    done = subprocess.run(
        [sys.executable, "-m", "esrl_fairseq.report", *report[1:], "--cpu"],
        cwd=here.folder,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (here.folder / "esrl" / "report.html").stat().st_size > 1e6
