"""The recipes' scripts that prepare text, average models and make tables, checked by hand."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_stand_ins import escaped, iwslt14, sgm, xml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def script(name):
    """A script of recipes/ as a module."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_")[:-3], RECIPES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments, text=None, cwd=None):
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, encoding="utf-8", cwd=cwd
    )


def lines_of(path):
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.mark.parametrize("make", [xml, sgm])
def test_segments_as_campaigns_write_them(make, tmp_path):
    texts = ["AT&T <b> costs > 3", "zwei  Wörter", "", "the end."]
    (tmp_path / "set").write_text(make(texts))
    found = script("tagged.py").segments(tmp_path / "set")
    assert found == ["AT&T <b> costs > 3", "zwei Wörter", "", "the end."]


def test_segments_of_untidy_sgml(tmp_path):
    """Upper case, no quotes, a bare &, a segment over two lines, two on one line."""
    text = "<SRCSET><DOC docid=x>\n<SEG ID=1>R&D\n costs</SEG><seg id=2> two</seg ></DOC>"
    (tmp_path / "set").write_text(text)
    assert script("tagged.py").segments(tmp_path / "set") == ["R&D costs", "two"]


@pytest.mark.parametrize("text", ["<seg id=1>whole</seg><seg id=2>cut o", "<doc>", "<seg>a<seg>b"])
def test_segments_that_are_cut_off(text, tmp_path):
    (tmp_path / "set").write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)):
        script("tagged.py").segments(tmp_path / "set")


def test_training_lines_of_iwslt(tmp_path):
    module = script("iwslt14_de_en/extract.py")
    text = (
        "<url>http://www.ted.com/x</url>\n<keywords>talks, a & b</keywords>\n<talkid>1</talkid>\n"
        "<title>AT&T; &amp; more</title>\n<description>TED Talk </description>\n"
        " Thank you. <laughs> a &lt; b \n\n<unknown> stays\n"
    )
    (tmp_path / "train").write_text(text)
    assert module.training_lines(tmp_path / "train", module.tagged().tag_and_text) == [
        "AT&T; &amp; more", "TED Talk", "Thank you. <laughs> a &lt; b", "", "<unknown> stays"
    ]  # fmt: skip


def test_iwslt_is_extracted_in_order(tmp_path):
    """From an archive of the original's layout; then a set of one language is a line short."""
    train_pairs, test_pairs = iwslt14(tmp_path)
    raw = tmp_path / "raw"
    unpacked = run("unpack.py", tmp_path / "de-en.tgz", raw / "unpacked", "de-en/*")
    assert unpacked.returncode == 0, unpacked.stderr
    result = run("iwslt14_de_en/extract.py", raw)
    assert result.returncode == 0, result.stderr
    for side, lang in enumerate(("de", "en")):
        expected = [" ".join(pair[side].split()).replace("’", "'") for pair in test_pairs]
        assert lines_of(raw / f"test.{lang}") == expected and len(expected) == 60
        train = lines_of(raw / f"train.{lang}")
        assert len(train) == 440 + 2 * 9
        assert train[:3] == 3 * [" ".join(train_pairs[0][side].split())]
    (raw / "unpacked" / "de-en" / "IWSLT14.TED.tst2011.de-en.en.xml").write_text(xml(["one"]))
    result = run("iwslt14_de_en/extract.py", raw)
    assert result.returncode == 1 and "two languages of test have [49, 60] lines" in result.stderr


def write_pairs(prefix, pairs):
    for side, lang in enumerate(("s", "t")):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        Path(f"{prefix}.{lang}").write_text(text, encoding="utf-8")


def pairs(folder, *options):
    return run("pairs.py", "--source", "s", "--target", "t", *options, cwd=folder)


def test_pairs_are_filtered_as_moses_does(tmp_path):
    """Ratios of exactly the limit are kept; each second of what is kept is held out."""
    found = [
        ("A b  c", "x y"), ("a b c d", "x y"), ("a b c d e f", "u v w x y z"), ("", "x"),
        ("B", "\u2028 y"), ("Ä", "z"), ("c d", "d c"),
    ]  # fmt: skip
    write_pairs(tmp_path / "in", found)
    options = ["--max-words", 5, "--max-ratio", 1.5, "--lower", "--every", 2, "--held", "valid"]
    result = pairs(tmp_path, *options, "in", "out")
    assert result.returncode == 0, result.stderr
    assert "2 of 7 pairs (1 empty, 2 held out, 1 of too different lengths, 1 too long)" in (
        result.stdout
    )
    assert lines_of(tmp_path / "out.s") == ["a b c", "ä"]
    assert lines_of(tmp_path / "valid.t") == ["y", "d c"]


def test_the_filter_of_paracrawl(tmp_path):
    found = [
        ("Das ist gut .", "That is good ."), ("Das ist gut .", "That is good ."),
        ("12 34 56 a", "12 34 56 a b"), ("gleich", "gleich"), ("Ja !", "Yes !"),
    ]  # fmt: skip
    write_pairs(tmp_path / "in", found)
    result = pairs(tmp_path, "--letters", 0.5, "--translated", "--distinct", "in", "out")
    assert "2 of 5 pairs (1 not text, 1 not translated, 1 repeated)" in result.stdout
    assert lines_of(tmp_path / "out.t") == ["That is good .", "Yes !"]


def test_several_corpora_follow_each_other(tmp_path):
    write_pairs(tmp_path / "one", [("a", "1"), ("b", "2")])
    write_pairs(tmp_path / "two", [("c", "3")])
    assert pairs(tmp_path, "one", "two", "out").returncode == 0
    assert lines_of(tmp_path / "out.t") == ["1", "2", "3"]
    (tmp_path / "two.t").write_text("3\n4\n")
    result = pairs(tmp_path, "one", "two", "out")
    assert result.returncode == 1
    assert "two.s and .t are no pairs: one of them ends before line 2" in result.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_moses_tokenises_line_by_line(jobs):
    text = "Der 3-jährige „Hund“ läuft.\n\n" + "a\u2028b\rc d.\n" * 2100
    options = ["--language", "de", "--jobs", jobs]
    plain = run("moses.py", *options, text=text)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.count("\n") == 2102
    assert plain.stdout.startswith("Der 3-jährige „ Hund “ läuft .\n\n")
    other = run("moses.py", *options, "--normalize", "--dashes", text=text)
    assert other.stdout.startswith("Der 3 @-@ jährige &quot; Hund &quot; läuft .\n\n")


def checkpoint(folder, name, value, minutes=0.0, updates=0):
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="a"), "task": argparse.Namespace(data="d")},
        "model": {"weight": torch.tensor([value, 1.0]), "count": torch.tensor([3])},
        "optimizer_history": [
            {
                "num_updates": updates,
                "optimizer_name": "FairseqAdam",
                "criterion_name": "c",
                "lr_scheduler_state": {"best": 1.0},
            }
        ],
        "extra_state": {
            "previous_training_time": 60 * minutes,
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0},
            "val_loss": 1.0,
        },
        "last_optimizer_state": {"big": torch.ones(3)},
    }
    torch.save(state, folder / name)


def test_the_last_epochs_are_averaged(tmp_path):
    for epoch, value in ((1, 9.0), (2, 1.0), (10, 2.0)):
        checkpoint(tmp_path / "mle", f"checkpoint{epoch}.pt", value, updates=epoch)
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_1_500.pt"):
        checkpoint(tmp_path / "mle", name, 100.0)
    module = script("average.py")
    paths = module.last_epochs(tmp_path / "mle", 2)
    assert [path.name for path in paths] == ["checkpoint2.pt", "checkpoint10.pt"]
    state = module.mean_state(paths)
    assert state["model"]["weight"].tolist() == [1.5, 1.0]
    assert state["model"]["weight"].dtype == torch.float32
    assert state["model"]["count"].tolist() == [3]
    assert state["last_optimizer_state"] is None
    torch.save(state, tmp_path / "mean.pt")  # and costs.py reads it, as plain data
    assert script("costs.py").progress_of(tmp_path / "mean.pt") == (10, 0.0)
    assert state["optimizer_history"][-1]["num_updates"] == 10
    with pytest.raises(SystemExit, match="has no checkpoint of an epoch"):
        module.last_epochs(tmp_path, 2)


def test_costs(tmp_path):
    """Time since the start model; a GPU's memory from the least that was left, else a process's."""
    checkpoint(tmp_path / "mle", "checkpoint_best.pt", 0.0, minutes=30)
    for run_name, cost in (("esrl", {"process_mb": 812.3, "gpu_total_mb": None}),
                           ("ppo", {"process_mb": 5.0, "gpu_total_mb": 80e3})):  # fmt: skip
        checkpoint(tmp_path / run_name, "checkpoint_last.pt", 0.0, minutes=42.5, updates=7)
        (tmp_path / run_name / "cost.json").write_text(json.dumps(cost))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "ppo.log").write_text("| gb_free=60.5 | x\n| gb_free=50, y\n")
    result = run("costs.py", "--start", "mle", "--logs", "logs", "mle", "esrl", "ppo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "esrl": {"updates": 7, "minutes": 12.5, "memory": "process", "peak_mb": 812},
        "ppo": {"updates": 7, "minutes": 12.5, "memory": "GPU", "peak_mb": 80000 - 53687},
    }


TABLE = """\
│ out/{0}.beam5.txt │  20.0 (μ = 20.0) │ 40.0 (μ = 40.0) │
{1}"""


@pytest.fixture
def scored(tmp_path):
    """What `score` leaves of a start model, ESRL and the control."""
    scores = {"mle": (20, 21), "esrl": (23, 22), "esrl-mle-continued": (22.5, 21.5)}
    for name, found in scores.items():
        for mode, bleu in zip(("beam5", "greedy"), found):
            metrics = [
                {"name": "BLEU", "score": bleu, "signature": "s", "verbose_score": "ratio = 0.98 "},
                {"name": "chrF2", "score": 40 + bleu, "signature": "t", "verbose_score": ""},
            ]
            (tmp_path / f"{name}.{mode}.json").write_text(json.dumps(metrics))
            (tmp_path / f"{name}.{mode}.log").write_text("Generate: BLEU4 = 33.44, 1\n")

    def compare(name, **p):
        for mode, rows in p.items():
            table = "".join(
                f"│ {run_name}.{mode}.txt │ 20 │ 40 │\n│ │ (p = {value})* │ (p = {value}) │\n"
                for run_name, value in rows.items()
            )
            (tmp_path / f"{name}.{mode}.txt").write_text(table)

    both = {"esrl": "0.001", "esrl-mle-continued": "0.002"}
    compare("compare", beam5=both, greedy=both)
    compare(
        "compare.others", beam5={"esrl-mle-continued": "0.2"}, greedy={"esrl-mle-continued": "0.01"}
    )
    costs = {
        "esrl": {"minutes": 3.21, "peak_mb": 700, "memory": "process"},
        "esrl-mle-continued": {"minutes": 3.2, "peak_mb": None, "memory": "process"},
    }
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    return tmp_path


def test_the_verdict_in_words(scored):
    options = ["--out", scored, "--compare", scored / "compare", "--of", "esrl"]
    options += ["--costs", scored / "costs.json", "--tokenised"]
    result = run("summary.py", *options, "mle", "esrl", "esrl-mle-continued")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    head = next(row for row in rows if row[:1] == ["run"])
    assert head[-4:] == ["BLEU", "minutes", "peak", "MB"]
    esrl = next(row for row in rows if row[:2] == ["esrl", "beam5"])
    assert esrl[2:5] == ["23.00", "+3.00", "0.001"] and esrl[-4:] == [
        "33.44",
        "3.2",
        "700",
        "process",
    ]
    assert (
        "esrl against mle: +3.00 BLEU with beam5 (p = 0.001), +1.00 BLEU with greedy (p = 0.001): "
        "better, significantly with both.\n"
        "esrl against esrl-mle-continued: +0.50 BLEU with beam5 (p = 0.2), +0.50 BLEU with greedy "
        "(p = 0.01): significantly better with greedy alone.\n"
    ) in result.stdout


@pytest.mark.parametrize(
    ("clear", "told"),
    [
        ([0, 0], "no significant difference"),
        ([-1, -1], "worse, significantly with both"),
        ([1, -1], "significantly better with beam5 and significantly worse with greedy"),
        ([0, -1], "significantly worse with greedy alone"),
    ],
)
def test_words_of_a_verdict(clear, told):
    assert script("summary.py").in_words(clear) == told


def test_the_verdict_of_rouge():
    pytest.importorskip("rouge_score")
    module = script("rouge_summary.py")
    draw = np.random.default_rng(1).normal(size=(200, 6))
    found = {}
    for mode, gain in (("beam5", 1.0), ("greedy", 0.0)):
        found["esrl", mode] = draw + gain
        noise = np.random.default_rng(2).normal(size=(200, 6))
        found["mle", mode] = draw + 0.1 * (noise - noise.mean(axis=0))
    told = module.verdict(found, "esrl", ["mle", "esrl"], seed=3)
    assert told.startswith("esrl against mle: +1.00 mean ROUGE with beam5 (p = 0.001), ")
    assert told.endswith(": better with beam5 and no different with greedy.")


def test_escaping_of_the_stand_ins():
    assert escaped("a & <b>") == "a &amp; &lt;b>"
