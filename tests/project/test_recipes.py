"""The recipes' own scripts, on texts small enough to check by hand."""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reward_texts import DATA

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def script(name):
    """A script of recipes/ as a module."""
    path = RECIPES / name
    spec = importlib.util.spec_from_file_location(name.replace("/", "_")[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")


def lines_of(path):
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture
def raw(tmp_path):
    files = {
        "train.s": ["A  one", "B", "C three", "", "E"],
        "train.t": ["one", "two two", "THREE", "four", "five"],
        "train.t1": ["1", "2", "", "4", " 5 5"],
        "valid.s": ["V", "W"],
        "valid.t": ["v", "w"],
        "valid.t1": ["three", ""],
        "valid.t2": ["", ""],
        "test.s": ["T"],
        "test.t": ["t"],
    }
    write(tmp_path / "raw", files)
    return tmp_path / "raw"


def clean(raw, *options):
    return run("clean.py", "--source", "s", "--target", "t", *options, raw, raw.parent / "clean")


def test_clean_keeps_further_references_in_line(raw):
    """Line 3's target is a further reference of valid, line 4 has no source."""
    result = clean(raw, "--lower")
    assert result.returncode == 0, result.stderr
    assert "valid: 2 pairs, up to 3 references" in result.stdout
    assert "train: 3 of 5 pairs kept" in result.stdout and "1 held out" in result.stdout
    found = {path.name: lines_of(path) for path in (raw.parent / "clean").iterdir()}
    assert found["train.s"] == ["a one", "b", "e"]
    assert found["train.t1"] == ["1", "2", "5 5"]
    assert found["valid.t1"] == ["three", ""] and found["valid.t2"] == ["", ""]
    assert found.keys() == {path.name for path in raw.iterdir()}


def test_clean_refuses_further_references_of_other_length(raw):
    write(raw, {"valid.t2": ["", "", "x"]})
    result = clean(raw)
    assert result.returncode == 1 and "valid.t2: 3 lines for 2 pairs" in result.stderr


def test_relative_folders_are_those_of_the_caller(tmp_path):
    """A recipe works in another folder than the one where it was called."""
    write(tmp_path / "here" / "data", {"one.txt": ["text"]})
    calls = 'recipe name a b none; fetch_urls nowhere one.txt; echo "$MLE_CHECKPOINT"'
    result = subprocess.run(
        ["bash", "-c", f"source {RECIPES / 'lib.sh'}; {calls}"],
        cwd=tmp_path / "here",
        env={
            **os.environ,
            "ESRL_WORK_DIR": str(tmp_path / "work"),
            "ESRL_DATA_DIR": "data",
            "MLE_CHECKPOINT": "data/mle.pt",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert lines_of(tmp_path / "work" / "raw" / "one.txt") == ["text"]
    assert result.stdout.endswith(f"{tmp_path}/here/data/mle.pt\n")


def test_scitldr_columns():
    columns = script("scitldr/extract.py").columns
    papers = [
        {"source": ["One.", "Two \n"], "target": ["first", " second\n"]},
        {"source": ["Three."], "target": ["a", "b", "c"]},
        {"source": ["Four."], "target": ["only"]},
    ]
    assert columns(papers) == {
        "abstract": ["One. Two", "Three.", "Four."],
        "tldr": ["first", "a", "only"],
        "tldr1": ["second", "b", ""],
        "tldr2": ["", "c", ""],
    }


def test_scitldr_sums_are_those_of_the_data(tmp_path):
    """A local copy, if there is one, holds the files of the repository."""
    folder = DATA / "scitldr"
    if not folder.exists():
        pytest.skip(f"{folder} is not here (see ESRL_TEST_DATA in CONTRIBUTING.md)")
    for line in lines_of(RECIPES / "scitldr" / "SHA256SUMS"):
        sum_, name = line.split()
        text = gzip.decompress((folder / f"{name}.gz").read_bytes())
        assert hashlib.sha256(text).hexdigest() == sum_
        (tmp_path / name).write_bytes(text)
    assert run("scitldr/extract.py", tmp_path).returncode == 0
    for split, papers, references in (("train", 1992, 1), ("valid", 619, 4), ("test", 618, 4)):
        files = sorted(tmp_path.glob(f"{split}.*"))
        assert [path.suffix for path in files if path.suffix != ".jsonl"] == [
            ".abstract", ".tldr", *(f".tldr{number}" for number in range(1, references))
        ]  # fmt: skip
        assert all(len(lines_of(path)) == papers for path in files if path.suffix != ".jsonl")
    assert "" not in lines_of(tmp_path / "test.tldr1")


def test_rlhf_sentiment_data(tmp_path):
    """Of a local copy, if there is one: sizes, prompts, and halves that share no sentence."""
    folder, name = DATA / "sentence_polarity", "sentence_polarity.zip"
    if not (folder / name).exists():
        pytest.skip(f"{folder} is not here (see ESRL_TEST_DATA in CONTRIBUTING.md)")
    (line,) = lines_of(RECIPES / "rlhf_sentiment" / "SHA256SUMS")
    assert line == f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
    result = run("rlhf_sentiment/prepare.py", folder, tmp_path)
    assert result.returncode == 0, result.stderr
    splits = {split: lines_of(tmp_path / f"{split}.text") for split in ("train", "valid", "test")}
    sentences = sum(splits.values(), [])
    assert len(sentences) == len(set(sentences)) > 9000
    assert [len(splits[split]) for split in ("valid", "test")] == [500, 1000]
    for split, texts in splits.items():
        prompts = lines_of(tmp_path / f"{split}.prompts")
        assert prompts == [" ".join(text.split()[:4]) for text in texts[:2048]]
    halves = {}
    for model in ("reward", "judge"):
        parts = [
            lines_of(tmp_path / model / f"train.{part}") for part in ("prompt", "continuation")
        ]
        halves[model] = [" ".join(pair) for pair in zip(*parts)]
        ratings = lines_of(tmp_path / model / "train.ratings")
        assert (
            len(ratings) == len(halves[model]) and 0.45 < ratings.count("1") / len(ratings) < 0.55
        )
    assert sorted(halves["reward"] + halves["judge"]) == sorted(splits["train"])


def test_cnn_dm_texts():
    extract = script("cnn_dm/extract.py")
    assert extract.first_words(" a  b\nc d ", 3) == "a b c"
    text = "Star gets £20M .\n\nHe ¶ says\x85no . \n"
    assert extract.joined_sentences(text, "¶") == "Star gets £20M . ¶ He says no ."


def test_cnn_dm_files(tmp_path, monkeypatch):
    extract = script("cnn_dm/extract.py")
    documents = [("one two three", "A .\nB ."), ("four", "C .")]
    monkeypatch.setattr(extract, "read_documents", lambda paths: documents)
    monkeypatch.setattr(extract, "DOCUMENTS", {"train": 2, "validation": 2, "test": 2})
    command = ["extract.py", "--separator", "¶", "--max-words", "2", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    extract.main()
    assert lines_of(tmp_path / "valid.article") == ["one two", "four"]
    assert lines_of(tmp_path / "test.highlights") == ["A . ¶ B .", "C ."]
    monkeypatch.setattr(extract, "DOCUMENTS", {"train": 3, "validation": 2, "test": 2})
    with pytest.raises(SystemExit, match="hold 2 documents instead of 3"):
        extract.main()


def test_cnn_dm_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, words in enumerate((["a", "b"], ["c"])):
        table = {"article": words, "highlights": [word.upper() for word in words], "id": words}
        parquet.write_table(pyarrow.table(table), tmp_path / f"test-{number}.parquet")
    read = script("cnn_dm/extract.py").read_documents
    assert read(sorted(tmp_path.glob("*.parquet"))) == [("a", "A"), ("b", "B"), ("c", "C")]


def rouge_summary():
    pytest.importorskip("rouge_score")
    return script("rouge_summary.py")


def test_rouge_by_hand():
    """ROUGE-2's best reference is another than ROUGE-1's; SciTLDR's script takes the latter."""
    module = rouge_summary()
    references = [["a b x x x x", "b a c d"]]
    (values,) = module.run_scores(["a b c"], references)
    first, second = (2 * 2 / 9, 2 * 1 / 7, 2 * 2 / 9), (2 * 3 / 7, 0, 2 * 2 / 7)
    expected = [second[0], first[1], second[2], second[2], second[1], second[2]]
    np.testing.assert_allclose(values, 100 * np.array(expected), atol=1e-9)


def test_rouge_equals_the_library_with_sentences():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    module = rouge_summary()
    references = [["The dogs ran . ¶ It rained .", "A dog runs ."], ["One sentence ."]]
    outputs = ["It rains . ¶ The dog ran .", "A sentence . ¶ One more ."]
    metric = scorer.RougeScorer(module.VARIANTS, use_stemmer=True)
    found = module.run_scores(outputs, references, "¶")
    for values, text, own in zip(found, outputs, references):
        own = [reference.replace("¶", "\n") for reference in own]
        expected = metric.score_multi(own, text.replace("¶", "\n"))
        expected = [100 * expected[name].fmeasure for name in module.VARIANTS]
        np.testing.assert_allclose(values[:4], expected, atol=1e-9)
    assert found[0, 3] > found[0, 2]  # the sentences are exchanged


def test_bootstrap_by_hand():
    module = rouge_summary()
    base = np.zeros((8, 3))
    run = np.stack([np.zeros(8), np.ones(8), np.r_[np.ones(4), -np.ones(4)]], axis=1)
    p = module.bootstrap_p(run, base, seed=1, resamples=400)
    # Equal; always better, which no resample reaches; and a difference of 0.
    assert p.tolist() == [1, 1 / 401, 1]


def test_bootstrap_agrees_with_the_normal_distribution():
    """A mean of 2 standard errors: p is about 0.0455 in a large sample."""
    module = rouge_summary()
    draw = np.random.default_rng(4).normal(size=(2000, 1))
    draw = (draw - draw.mean()) / draw.std()
    run = draw + 2 / np.sqrt(2000)
    p = module.bootstrap_p(run, np.zeros_like(run), seed=2, resamples=4000)
    assert p[0] == pytest.approx(0.0455, abs=0.012)
    again = module.bootstrap_p(run, np.zeros_like(run), seed=2, resamples=4000)
    assert p == again and p == module.bootstrap_p(-run, np.zeros_like(run), 2, 4000)


def test_rouge_table(tmp_path):
    pytest.importorskip("rouge_score")
    write(tmp_path, {"test.tldr": ["a b c", "d e"], "test.tldr1": ["x y", ""]})
    for run_name, lines in (("mle", ["x", "d"]), ("esrl", ["x y", "d e"])):
        for mode in ("beam5", "greedy"):
            write(tmp_path / "out", {f"{run_name}.{mode}.txt": lines})
    options = ["--references", tmp_path / "test.tldr", "--out", tmp_path / "out", "--seed", 3]
    result = run("rouge_summary.py", *options, "mle", "esrl")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("esrl")]
    assert rows[0][:4] == ["esrl", "beam5", "100.00", "+33.33"] and rows[0][-1] == "0.800"
    assert "RLsum" not in result.stdout and "best of up to 2 references" in result.stdout
    saved = json.loads((tmp_path / "out" / "mle.greedy.json").read_text())
    assert saved["R1"] == pytest.approx(66.6667) and saved["length_ratio"] == 0.4

    write(tmp_path / "out", {"esrl.greedy.txt": ["x y"]})
    result = run("rouge_summary.py", *options, "mle", "esrl")
    assert result.returncode == 1 and "1 outputs for 2 documents" in result.stderr
    (tmp_path / "test.tldr1").unlink()
    write(tmp_path / "out", {"esrl.greedy.txt": ["x y", "d e"]})
    result = run("rouge_summary.py", *options, "--separator", "¶", "mle", "esrl")
    assert "RLsum" in result.stdout and "by R1" not in result.stdout


def test_rlhf_llama_data(tmp_path):
    rows = [{"instruction": f"Do {i} .", "input": "" if i % 2 else "a\nb"} for i in range(1300)]
    rows += [rows[0], {"instruction": "long " * 201, "input": ""}]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(rows))
    result = run("rlhf_llama/prepare.py", tmp_path, tmp_path / "clean")
    assert result.returncode == 0, result.stderr
    found = [lines_of(tmp_path / "clean" / split) for split in ("train", "valid", "test")]
    assert list(map(len, found)) == [100, 200, 1000]
    assert "Do 0 . a b" in sum(found, []) and len(set(sum(found, []))) == 1300


def test_nllb_sources(tmp_path):
    """Distinct ones of a fitting length that are not held out, the same each time."""
    held = ["held out one two"]
    mono = [f"sentence  {i} of five words" for i in range(30)] + ["short", *held, "a b c d e f g"]
    files = {"mono.en": mono * 2, "valid.en": held, "valid.fi": ["x"], "test.en": ["t"]}
    write(tmp_path / "raw", {**files, "test.fi": ["u  u"]})
    options = ["--source", "en", "--target", "fi", "--words", 4, 6]
    found = []
    for number in (10, 10, 99):
        result = run("nllb_qe/prepare.py", *options, "--number", number, tmp_path / "raw", tmp_path)
        assert result.returncode == 0, result.stderr
        found.append(lines_of(tmp_path / "train.en"))
    assert found[0] == found[1] and len(set(found[0])) == 10 and set(found[0]) < set(found[2])
    assert sorted(found[2]) == sorted(" ".join(line.split()) for line in mono[:30])
    assert lines_of(tmp_path / "test.fi") == ["u u"] and not (tmp_path / "train.fi").exists()
    write(tmp_path / "raw", {"test.fi": ["u", "v"]})
    result = run("nllb_qe/prepare.py", *options, "--number", 1, tmp_path / "raw", tmp_path)
    assert result.returncode == 1 and "test has 1 and 2 lines" in result.stderr


def test_programs_are_compared(tmp_path):
    """Equal lines are counted, others written down; equal outputs have no p."""
    texts = {
        "out": {"mle": ["a b c d", "a b c x"], "esrl": ["a b c d", "a b c d"]},
        "other": {"mle": ["a b c d", "a b c x"], "esrl": ["a b c d", "b b c d"]},
        "same": {"mle": ["a b c d", "a b c x"], "esrl": ["a b c d", "a b c x"]},
    }
    write(tmp_path, {"test.en": ["a b c d", "a b c d"]})
    for folder, runs in texts.items():
        for name, lines in runs.items():
            for mode in ("beam5", "greedy"):
                write(tmp_path / folder, {f"{name}.{mode}.txt": lines})
    programs = [x for name in texts for x in ("--program", name, tmp_path / name)]
    told = tmp_path / "told"
    result = run(
        *["multi30k_marian/programs.py", "--reference", tmp_path / "test.en", *programs],
        *["--differences", told, "mle", "esrl"],
    )
    assert result.returncode == 0, result.stderr
    rows = [re.split("  +", line) for line in result.stdout.splitlines()]
    cells = {tuple(row[:3]): row[3:] for row in rows if len(row) > 4}
    assert cells["esrl", "beam5", "out"][:2] == ["2 of 2", "100.00"]
    assert cells["esrl", "greedy", "other"][0] == "1 of 2"
    assert cells["esrl", "greedy", "same"][0] == "1 of 2"
    assert cells["esrl", "greedy", "same"][2:4] == ["+0.00", "-"]
    assert float(cells["esrl", "beam5", "out"][2]) > 0 and cells["esrl", "beam5", "out"][3] != "-"
    assert "4 lines differ" in result.stdout
    assert told.read_text().count("\n    a b c d\n    b b c d\n") == 2


def test_bash_reads_every_recipe():
    for path in [*RECIPES.glob("*.s*"), *RECIPES.glob("*/*.sh")]:
        result = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
