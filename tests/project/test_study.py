"""benchmarks/study without training: the list of runs, the bootstrap and the tables."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
sys.path.insert(0, str(FOLDER))

import bootstrap  # noqa: E402
import metrics  # noqa: E402
import plan  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import results as results_file  # noqa: E402

TRANSLATION = metrics.Translation()
STUDY = """
[budget]
seconds = 1800
updates = 400
checkpoints = 2
[options]
all = "--lr 1 --adam-betas '(0.9, 0.98)'"
mle = "--criterion m"
rl = "--criterion esrl"
[pairs.de-en]
recipe = "demo"
start = "mle"

[experiments.main]
title = "Methods"
pairs = ["de-en"]
seeds = [1, 2]
against = "esrl"
[experiments.main.methods]
mle = { group = "mle" }
reinforce = "--objective reinforce --sampling standard"
esrl = ""

[experiments.samples]
title = "K"
pairs = ["de-en"]
seeds = [1]
against = "8"
options = "--lr 3"
[experiments.samples.methods]
"8" = { same_as = "main/esrl" }
"2" = "--num-samples 2"

[experiments.size]
title = "Sizes"
pairs = ["de-en"]
seeds = [1]
cost_only = true
budget = { seconds = 0, updates = 3, checkpoints = 0 }
[experiments.size.methods]
esrl = "--k 1"
[experiments.size.variants]
"1M" = "--width 1"
"3M" = ""
"""


def load(folder, text=STUDY):
    (folder / "study.toml").write_text(text)
    return plan.load(folder / "study.toml")


# The list of runs


def test_runs(tmp_path):
    """Every run once; a seed of all methods before the next seed; shared runs have one owner."""
    study = load(tmp_path)
    main = ["mle", "reinforce", "esrl"]
    assert [run.name for run in study.runs()] == [
        *(f"main/de-en/{method}/{seed}" for seed in (1, 2) for method in main),
        "samples/de-en/2/1",
        *(f"size/de-en/esrl {size}/1" for size in ("1M", "3M")),
    ]
    assert study.run("samples", "de-en", "8", 1) == study.run("main", "de-en", "esrl", 1)


def test_options_are_joined_from_general_to_special(tmp_path):
    runs = {run.name: run for run in load(tmp_path).runs()}
    common = ("--lr", "1", "--adam-betas", "(0.9, 0.98)", "--criterion")
    assert runs["main/de-en/mle/1"].options == (*common, "m")
    samples = runs["samples/de-en/2/1"]
    assert samples.options == (*common, "esrl", "--lr", "3", "--num-samples", "2")
    assert samples.settings()["options"].startswith("--lr 1 --adam-betas '(0.9, 0.98)'")
    size = runs["size/de-en/esrl 1M/1"]
    assert size.options == (*common, "esrl", "--k", "1", "--width", "1")
    assert size.budget == plan.Budget(0, 3, 0) and size.cost_only


def test_select(tmp_path):
    study = load(tmp_path)
    names = [run.name for run in study.select(["main/*/esrl/1", "size/*"])]
    assert names == ["main/de-en/esrl/1", "size/de-en/esrl 1M/1", "size/de-en/esrl 3M/1"]
    with pytest.raises(plan.StudyError, match="--only esrl fits no run"):
        study.select(["main/*", "esrl"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[budget]", "[budget", "is not TOML"),
        ("title = ", "titel = ", "'title'"),
        ('against = "8"', 'agianst = "8"', "agianst"),
        ('against = "8"', 'against = "9"', "is against '9'"),
        ('pairs = ["de-en"]', 'pairs = ["de-fr"]', "'de-fr', which is not in"),
        ('group = "mle"', 'group = "sft"', "'sft'"),
        ('start = "mle"', 'start = "mle"\nmetric = "ter"', "metric 'ter' is not of"),
        ('"main/esrl"', '"main/ersl"', "which is not EXPERIMENT/METHOD"),
        ('"main/esrl"', '"samples/8"', "no runs of its own"),
        ('"2" = ', '"1/2" = ', "a name has no slash"),
        ('"2" = ', '"start" = ', "is not start"),
        ("seeds = [1]\nagainst", "seeds = [3]\nagainst", "does not have all its pairs and seeds"),
        ('against = "8"', "budget = { updates = 9 }", "has another budget"),
        ("checkpoints = 2", "checkpoints = 0", "leaves no model"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(plan.StudyError, match=message) as error:
        load(tmp_path, STUDY.replace(old, new))
    assert str(tmp_path / "study.toml") in str(error.value)


@pytest.mark.parametrize("file", [plan.STUDY, plan.HERE / "summarization.toml"])
def test_the_study_itself_is_sound(file):
    """Its runs have names of their own, and its page a place for every experiment."""
    study = plan.load(file)
    names = [run.name for run in study.runs()]
    assert len(set(names)) == len(names)
    page = (FOLDER.parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
    for name in study.experiments:
        assert report.fill(page, name, "new", Path("study.md")) != page
    for pair in study.pairs.values():
        recipe = FOLDER.parents[1] / "recipes" / pair.recipe / "run.sh"
        text = recipe.read_text()
        assert re.search(rf'(multi30k.sh"|recipe \w+) {pair.source} {pair.target}$', text, re.M)


def test_studies_do_not_share_experiments():
    """They share a page, which has one place for each name."""
    studies = [plan.load(file) for file in (plan.STUDY, plan.HERE / "summarization.toml")]
    assert not set(studies[0].experiments) & set(studies[1].experiments)


# The bootstrap


def system(seed, sentences=60):
    """A noisy copy of random references, words exchanged and left out: hypotheses, references."""
    rng = np.random.default_rng(7)
    references = [rng.integers(0, 9, size=rng.integers(3, 12)) for _ in range(sentences)]
    rng = np.random.default_rng(seed)
    noisy = [np.where(rng.random(len(r)) < 0.3, rng.integers(0, 9, len(r)), r) for r in references]
    noisy = [words[rng.random(len(words)) < 0.95] for words in noisy]
    return [[" ".join(f"w{i}" for i in words) for words in texts] for texts in (noisy, references)]


def test_statistics_make_sacrebleus_score():
    hypotheses, references = system(1)
    found = TRANSLATION.counts(hypotheses, references)
    assert found.shape == (60, 10)
    expected = BLEU().corpus_score(hypotheses, [references]).score
    assert metrics.corpus_bleu(found.sum(0)) == expected
    assert found[:, 0].sum() < found[:, 1].sum()  # a brevity penalty
    few = int(np.argmax((found[:, 2] > 0) & (found[:, 5] == 0) & (found[:, 9] > 0)))  # smoothed
    expected = BLEU().corpus_score(hypotheses[few : few + 1], [references[few : few + 1]]).score
    assert metrics.corpus_bleu(found[few]) == expected > 0


@pytest.mark.parametrize("seeds", [(1, 2), (1, 3), (4, 5)])
def test_one_system_a_method_resamples_as_sacrebleu(seeds, monkeypatch):
    """sacreBLEU's own p of these resamples; ours is two-sided, and differs as documented."""
    monkeypatch.setenv("SACREBLEU_SEED", str(bootstrap.SEED))
    (one, references), (other, _) = (system(seed) for seed in seeds)
    test = PairedTest(
        [("one", one), ("other", other)], {"BLEU": BLEU()}, [references], "bs", n_samples=1000
    )
    _, scores = test()
    theirs = scores["BLEU"][1]

    statistics = [[TRANSLATION.counts(texts, references)] for texts in (one, other)]
    draws = [bootstrap.resampled(systems, metrics.corpus_bleu, 1000) for systems in statistics]
    found = bootstrap.compare(*statistics, metrics.corpus_bleu, resamples=1000)
    by_chance, size = draws[0] - draws[1], abs(found.difference)
    assert found.difference == pytest.approx(scores["BLEU"][0].score - theirs.score)
    assert draws[1].mean() == pytest.approx(theirs.mean)
    sizes = np.abs(by_chance)
    assert theirs.p_value == (np.sum(sizes - sizes.mean() > size) + 1) / 1001
    assert found.p == (np.sum(np.abs(by_chance - by_chance.mean()) >= size) + 1) / 1001
    assert found.low < found.difference < found.high


def test_resamples_are_the_mean_over_seeds():
    a, b = (TRANSLATION.counts(*system(seed)) for seed in (1, 2))
    both = bootstrap.resampled([a, b], metrics.corpus_bleu, 50)
    each = (
        bootstrap.resampled([a], metrics.corpus_bleu, 50)
        + bootstrap.resampled([b], metrics.corpus_bleu, 50)
    ) / 2
    np.testing.assert_allclose(both, each)
    drawn = np.random.default_rng(bootstrap.SEED).choice(60, size=(50, 60), replace=True)
    expected = [metrics.corpus_bleu(a[rows].sum(0)) for rows in drawn]
    np.testing.assert_allclose(bootstrap.resampled([a], metrics.corpus_bleu, 50), expected)


def test_equal_methods_differ_by_chance():
    a, b = (TRANSLATION.counts(*system(seed)) for seed in (1, 2))
    assert bootstrap.compare([a, b], [b, a], metrics.corpus_bleu) == bootstrap.Comparison(
        0, 0, 0, 1
    )


def test_a_large_difference_is_not_chance():
    hypotheses, references = system(1)
    perfect, noisy = (TRANSLATION.counts(texts, references) for texts in (references, hypotheses))
    found = bootstrap.compare([perfect], [noisy], metrics.corpus_bleu)
    assert found.low > 0 and found.p == 1 / (1 + bootstrap.RESAMPLES)


SUMMARIES = ["fast a small model learns", "we show nothing", "sampling is slow"]
REFERENCES = [
    ["the small model learns quickly", "models learn fast"],
    ["we show that it works"],
    ["sampling is fast", "", "sampling is slow"],
]


def summaries_in(folder):
    """The metric, and REFERENCES as read from files: a further reference may be missing."""
    for number, ending in enumerate(("tldr", "tldr1", "tldr2")):
        lines = [own[number] if number < len(own) else "" for own in REFERENCES]
        (folder / f"test.{ending}").write_text("".join(f"{line}\n" for line in lines))
    metric = metrics.Summarization()
    return metric, metric.references(folder / "test.tldr")


def test_counts_make_rouge(tmp_path):
    """Of several references the best one counts, for each variant on its own."""
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    metric, references = summaries_in(tmp_path)
    assert references == [[text for text in own if text] for own in REFERENCES]
    scorer = rouge_scorer.RougeScorer(metrics.VARIANTS, use_stemmer=True)
    found = metric.scores(SUMMARIES, references)
    for name in metrics.VARIANTS:
        best = [
            max(scorer.score(reference, text)[name].fmeasure for reference in own)
            for text, own in zip(SUMMARIES, references)
        ]
        assert found[name] == pytest.approx(100 * np.mean(best), abs=0.005)
    assert found["rouge"] == pytest.approx(np.mean([found[name] for name in metrics.VARIANTS]))
    assert found["length_ratio"] == pytest.approx(11 / 13)
    assert found["rouge1"] > found["rougeL"] > found["rouge2"] > 0


def test_variants_are_compared(tmp_path):
    """Words in another order: equal in single words, worse in pairs and in sequence."""
    pytest.importorskip("rouge_score")
    metric, references = summaries_in(tmp_path)
    other = [" ".join(text.split()[::-1]) for text in SUMMARIES]
    good, bad = (metric.counts(texts, references) for texts in (SUMMARIES, other))
    found = {
        name: bootstrap.compare([good], [bad], score, resamples=50).difference
        for name, score in metric.compared.items()
    }
    assert found["rouge1"] == 0 and found["rouge2"] > 0 and found["rougeL"] > 0
    parts = [found[name] for name in metrics.VARIANTS]
    assert found["rouge"] == pytest.approx(np.mean(parts))


# The tables


def result(bleu, updates=400, seconds=1300.0):
    scores = {"bleu": bleu, "chrf": bleu + 20, "length_ratio": 0.98}
    return {
        "updates": updates,
        "seconds": seconds,
        "valid_bleu": bleu - 1,
        "beam5": scores,
        "greedy": {**scores, "bleu": bleu - 0.5},
    }


def row(run, cost, **results):
    """A run's row in results.json."""
    about = {"machine": "M", "commit": "abc", "jobs": 2}
    training = {"updates": int(1800 / cost), "seconds_per_update": cost, "peak_mb": 700.0}
    signatures = {"bleu": "B", "chrf": "C"}
    valid = [{"updates": k, "seconds": 900.0 * k, "bleu": 39.0 + k} for k in (1, 2)]
    evaluation = {"valid": valid, "results": results, "signatures": signatures}
    return {"run": run, "about": about, "training": training, "evaluation": evaluation}


@pytest.fixture
def results(tmp_path):
    """The main experiment done, standard REINFORCE without as many updates; the others in part."""
    runs = [row("start/de-en", 1, time=result(40.0))]
    for seed, more in ((1, 0.0), (2, 0.5)):
        name = f"main/de-en/{{}}/{seed}"
        runs += [
            row(name.format("mle"), 0.5, time=result(40.0 + more), updates=result(39.9)),
            row(name.format("reinforce"), 6.0, time=result(40.5 + more)),
            row(name.format("esrl"), 3.0, time=result(41.5 + more), updates=result(41.0 + more)),
        ]
    cost = row("size/de-en/esrl 1M/1", 1.0)
    del cost["evaluation"]
    comparison = {"experiment": "main", "pair": "de-en", "against": "esrl", "resamples": 2000}
    comparisons = [
        {
            **comparison,
            "budget": budget,
            "search": search,
            "score": "bleu",
            "method": method,
            **values,
        }
        for budget in ("time", "updates")
        for search in ("beam5", "greedy")
        for method, values in (
            ("mle", {"difference": -1.5, "low": -2.0, "high": -1.0, "p": 0.0005}),
            ("reinforce", {"difference": -0.1, "low": -0.5, "high": 0.3, "p": 0.61}),
        )
    ]
    study = load(tmp_path)
    return results_file.Results(study, {"runs": [*runs, cost], "comparisons": comparisons})


def test_summary(results):
    rows = report.summary(results)
    assert [(row["method"], row["budget"]) for row in rows] == [
        *((method, "time") for method in ("mle", "reinforce", "esrl")),
        *((method, "updates") for method in ("mle", "esrl")),
    ]
    assert rows[0] == {
        "pair": "de-en",
        "method": "mle",
        "budget": "time",
        "bleu_mean": 40.25,
        "bleu_sd": 0.354,
        "n": 2,
        "p_vs_esrl": 0.0005,
        "search": "beam5",
        "experiment": "main",
    }
    assert rows[2]["p_vs_esrl"] is None
    assert rows[4]["bleu_mean"] == pytest.approx(41.25)


def test_summary_of_the_second_main_experiment(tmp_path):
    text = STUDY.replace("experiments.main", "experiments.main-2560")
    study = load(tmp_path, text.replace("main/esrl", "main-2560/esrl"))
    run = row("main-2560/de-en/esrl/1", 3.0, time=result(41.5))
    (only,) = report.summary(results_file.Results(study, {"runs": [run], "comparisons": []}))
    assert (only["experiment"], only["method"], only["n"]) == ("main-2560", "esrl", 1)


def test_tables(results, tmp_path):
    block = report.block(results, results.study.experiments["main"], tmp_path)
    assert block.splitlines() == [
        "**de-en, equal time: 1,800 s of CPU time each**",
        "",
        "|  | n | updates | s/update | peak MB | best after | valid | beam 5 BLEU | − esrl | p | "
        "greedy BLEU | − esrl | p | chrF2 | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| start |  |  |  |  |  | 39.00 | 40.00 |  |  | 39.50 |  |  | 60.00 | 0.980 |",
        "| mle | 2 | 3,600 | 0.50 | 700 | 1,300 s | 39.25 ± 0.35 | 40.25 ± 0.35 | -1.50 | "
        "< 0.001 | 39.75 ± 0.35 | -1.50 | < 0.001 | 60.25 ± 0.35 | 0.980 |",
        "| reinforce | 2 | 300 | 6.00 | 700 | 1,300 s | 39.75 ± 0.35 | 40.75 ± 0.35 | -0.10 | "
        "0.610 | 40.25 ± 0.35 | -0.10 | 0.610 | 60.75 ± 0.35 | 0.980 |",
        "| esrl | 2 | 600 | 3.00 | 700 | 1,300 s | 40.75 ± 0.35 | 41.75 ± 0.35 |  |  | "
        "41.25 ± 0.35 |  |  | 61.75 ± 0.35 | 0.980 |",
        "",
        "**de-en, equal updates: 400 each**",
        "",
        "|  | n | CPU s | beam 5 BLEU | − esrl | p | greedy BLEU | − esrl | p | chrF2 | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| start |  |  | 40.00 |  |  | 39.50 |  |  | 60.00 | 0.980 |",
        "| mle | 2 | 1,300 | 39.90 ± 0.00 | -1.50 | < 0.001 | 39.40 ± 0.00 | -1.50 | < 0.001 | "
        "59.90 ± 0.00 | 0.980 |",
        "| reinforce | 0 | – |  |  |  |  |  |  |  |  |",
        "| esrl | 2 | 1,300 | 41.25 ± 0.35 |  |  | 40.75 ± 0.35 |  |  | 61.25 ± 0.35 | 0.980 |",
        "",
        "`python benchmarks/study/run.py --work DIR --only 'main/*'`",
        "",
        "`B`",
        "`C`",
        "M, 2 at a time",
        "Commit abc.",
    ]


def test_the_start_is_compared(results, tmp_path):
    """Under equal time; under equal updates it has trained for none."""
    for search in ("beam5", "greedy"):
        key = ("main", "de-en", "time", search, "bleu", "start")
        results.comparisons[key] = {"difference": -1.25, "p": 0.02}
    block = report.block(results, results.study.experiments["main"], tmp_path)
    timed, _, updates = block.partition("equal updates")
    assert "40.00 | -1.25 | 0.020 | 39.50 | -1.25 | 0.020 |" in timed
    assert "-1.25" not in updates


def test_results_in_the_repository_are_readable():
    for file in (plan.STUDY, plan.HERE / "summarization.toml"):
        study, folder = plan.load(file), plan.results_of(file)
        found, counts = results_file.read(folder)
        results = results_file.Results(study, found)
        assert set(results.runs) >= {name.rpartition("/")[0] for name in counts}
        for experiment in study.experiments.values():
            assert report.block(results, experiment, folder)


def test_tables_of_what_is_not_complete(results, tmp_path):
    """A shared run is shown where it is needed; one that is missing has a row without numbers."""
    samples = report.block(results, results.study.experiments["samples"], tmp_path)
    assert "| 8 | 1 | 600 |" in samples and "\n| 2 | 0 |" in samples
    assert "run.py --work DIR --only 'main/*' --only 'samples/*'`" in samples
    size = report.block(results, results.study.experiments["size"], tmp_path)
    assert "| esrl 1M | 1 | 1.00 | 700 |" in size and "| esrl 3M | 0 |  |  |" in size
    assert "BLEU" not in size
    results.runs.clear()
    assert report.block(results, results.study.experiments["size"], tmp_path) == "Not run yet."


def test_hand_written_words_stay():
    page = "A\n<!-- begin main -->\nold\n<!-- end main -->\nB\n"
    filled = report.fill(page, "main", "new", Path("page"))
    assert filled == "A\n<!-- begin main -->\n\nnew\n\n<!-- end main -->\nB\n"
    assert report.fill(filled, "main", "new", Path("page")) == filled
    with pytest.raises(plan.StudyError, match="page has no place for size"):
        report.fill(page, "size", "new", Path("page"))


def test_plots(results, tmp_path):
    pytest.importorskip("matplotlib")
    samples = results.study.experiments["samples"]
    shared = {"8": samples.methods["8"]}  # main's: a picture would show main's again
    results.study.experiments["shared"] = replace(samples, name="shared", methods=shared)
    plots.draw_all(results, tmp_path)
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {"study-main.png", "study-samples.png", "study-size.png"}
    main = report.block(results, results.study.experiments["main"], tmp_path)
    assert "![Methods](study-main.png)" in main


NOTHING = {"runs": [], "comparisons": []}, {}


OUTPUTS = {"esrl": 1, "mle": 2, "reinforce": 3, "start": 9}  # seeds


def outputs(method, search):
    """Counts of a method's output, of all its seeds."""
    return TRANSLATION.counts(*system(OUTPUTS[method] + 10 * (search == "greedy")))


def leave(folder, method, settings):
    """What a finished run leaves in its folder."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    entry = {**row("", 3.0, time=result(40.123456)), "settings": settings}
    del entry["run"]
    (folder / "result.json").write_text(json.dumps(entry))
    for search in ("beam5", "greedy"):
        np.save(folder / "out" / f"time.{search}.npy", outputs(method, search))


def settings_of(run, **other):
    return {**run.settings(), "start": "s", "data": "d", **other}


@pytest.fixture
def gathered(tmp_path):
    """The study, its work folder and what was gathered from it; REINFORCE had another budget."""
    study, work = load(tmp_path), tmp_path / "work"
    leave(work / "start" / "de-en", "start", {"pair": "de-en", "start": "s"})
    for run in study.select(["main/*/esrl/*", "main/*/mle/*", "main/*/reinforce/1"]):
        other = {"budget": {"seconds": 1}} if run.method == "reinforce" else {}
        leave(work / "runs" / run.name, run.method, settings_of(run, **other))
    return study, work, results_file.gather(study, work, *NOTHING)


def test_gather(gathered):
    """What was done with other settings is left out; comparisons come from the outputs."""
    _, _, (found, _) = gathered
    assert [row["run"] for row in found["runs"]] == ["start/de-en"] + [
        f"main/de-en/{method}/{seed}" for seed in (1, 2) for method in ("mle", "esrl")
    ]
    assert found["runs"][1]["evaluation"]["results"]["time"]["beam5"]["bleu"] == 40.1235
    # Also of samples, which shows main's esrl: only the start is there to be compared.
    searches = ("beam5", "greedy")
    assert [(c["experiment"], c["method"], c["search"]) for c in found["comparisons"]] == [
        *(("main", method, search) for search in searches for method in ("mle", "start")),
        *(("samples", "start", search) for search in searches),
    ]
    for compared in found["comparisons"][:4]:
        assert compared["score"] == "bleu"
        method, search = compared["method"], compared["search"]
        seeds = [outputs(method, search)] * (1 if method == "start" else 2)
        expected = bootstrap.compare(seeds, [outputs("esrl", search)] * 2, metrics.corpus_bleu)
        assert compared["difference"] == pytest.approx(expected.difference, abs=1e-4)
        assert compared["p"] == pytest.approx(expected.p, abs=1e-4)


def test_another_work_folder_adds_its_runs(gathered, tmp_path):
    """To those that were written before, once."""
    study, _, (found, kept) = gathered
    results_file.write(tmp_path, found, kept)
    other = tmp_path / "other"
    for run in study.select(["main/*/reinforce/*"]):
        leave(other / "runs" / run.name, "reinforce", settings_of(run))
    both, counted = results_file.gather(study, other, *results_file.read(tmp_path))
    assert [row for row in both["runs"] if "/reinforce/" not in row["run"]] == found["runs"]
    assert len(both["runs"]) == len(found["runs"]) + 2
    assert len(counted) == 2 * len(both["runs"])
    before = [row for row in both["comparisons"] if row["method"] != "reinforce"]
    assert before == found["comparisons"] and len(both["comparisons"]) == 8
    again, counted = results_file.gather(study, other, both, counted)
    assert again == both and len(counted) == 2 * len(both["runs"])


def test_a_run_with_other_settings_does_not_replace_one_of_the_study(gathered, capsys):
    """Nor does one with more settings than the study's count as its own."""
    study, work, (found, counts) = gathered
    run = study.run("main", "de-en", "mle", 1)
    leave(work / "runs" / run.name, "mle", settings_of(run, seed=7))
    assert results_file.gather(study, work, found, counts)[0] == found
    assert f"left out, done with other settings: {run.name}" in capsys.readouterr().err
    for row in found["runs"]:
        if row["run"] == run.name:
            row["settings"]["train_inputs"] = 40
    kept, _ = results_file.gather(study, None, found, counts)
    assert run.name not in {row["run"] for row in kept["runs"]}
    assert f"left out, done with other settings: {run.name}" in capsys.readouterr().err


def test_runs_from_another_start_are_refused(gathered):
    study, work, _ = gathered
    run = study.run("main", "de-en", "mle", 1)
    leave(work / "runs" / run.name, "mle", settings_of(run, start="other"))
    with pytest.raises(plan.StudyError, match="do not all start from the same model"):
        results_file.gather(study, work, *NOTHING)


def test_runs_scored_otherwise_are_left_out(tmp_path, capsys):
    """Options of fairseq-generate are part of what a result depends on."""
    for options in ("", "--lenpen 2"):
        study = load(
            tmp_path, STUDY.replace('start = "mle"', f'start = "mle"\ngenerate = "{options}"')
        )
        run = study.run("main", "de-en", "mle", 1)
        work = tmp_path / "work"
        leave(work / "runs" / run.name, "mle", settings_of(run))
        found, _ = results_file.gather(study, work, *NOTHING)
        assert [row["run"] for row in found["runs"]] == ([] if options else [run.name])
    assert f"left out, done with other settings: {run.name}" in capsys.readouterr().err
