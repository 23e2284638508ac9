"""The benchmarks run as documented and write the rows that are asked for; no speed is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esrl_fairseq.rewards import reward_names

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--params", "tiny", "--inputs", "3", "--length", "4", "--rounds", "1", "--threads", "1")
PEERS = [("trl_rloo", "9 rows at once"), ("trl_grpo", "9 rows at once")]
PYTHON_BACK_ENDS = hasattr(
    getattr(torch._C, "_acc", None), "register_python_privateuseone_device_guard"
)
OURS = ("corpus-bleu", "language-gate", "length", "length-gate", "repetition")
"""Rewards that no library has."""
HEADER = {"machine", "commit", "versions", "threads", "device", "dtype", "command"}


def run(script, *arguments):
    """The script's output; it has to succeed."""
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(folder, script, *arguments):
    """The JSON rows of a tiny run, all with the header's entries."""
    file = folder / "rows.json"
    printed = run(script, *TINY, "--json", file, *arguments)
    rows = json.loads(file.read_text())
    assert all(row.keys() >= HEADER for row in rows)
    assert rows[0]["commit"] in printed
    assert str(folder) not in file.read_text()
    return rows


@pytest.mark.long
def test_stage_one(tmp_path):
    """An engine has a speed or a reason; the others' speeds stand beside the plain products'."""
    rows = rows_of(tmp_path, "stage_one.py", "--k", "2", "--rounds", "1")
    engines = ["esrl", "sequence_generator", "transformers", "ctranslate2", "gemm"]
    assert [(row["engine"], row["k"]) for row in rows] == [(engine, 2) for engine in engines]
    for row in rows:
        assert row["params"] == "tiny"
        if row["tokens_per_s"] is None:
            assert row["engine"] in ("transformers", "ctranslate2")
            assert "not available" in row["reason"]
        else:
            assert row["tokens_per_s"] > 0 and row["gemm_share"] > 0
            assert row["tokens"] == 3 * row["k"] * 5  # inputs, samples, words and EOS


@pytest.mark.long
def test_seq2seq(tmp_path):
    """Stage one and ``generate`` draw as much, and an update learns from it."""
    pytest.importorskip("transformers", reason="extra hf is not installed")
    rows = rows_of(tmp_path, "seq2seq.py", "--k", "2")
    assert [row["case"] for row in rows] == ["esrl", "generate", "update"]
    assert all(row["tokens"] == 3 * 2 * 5 and row["tokens_per_s"] > 0 for row in rows)
    assert rows[1]["esrl_speedup"] > 0 and rows[2]["seconds_stage_two"] > 0


def test_what_is_measured_is_kept_after_every_round():
    code = (
        "import common, json; cases = {'good': lambda: {'x': 1}, 'bad': lambda: 1 / 0}; kept = []; "
        "keep = lambda found: kept.append({name: len(rows) for name, rows in found.items()}); "
        "common.interleave(cases, 2, after_round=keep); print(json.dumps(kept))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True)
    assert json.loads(done.stdout) == [{"good": 1, "bad": 1}, {"good": 2, "bad": 1}], done.stderr


@pytest.mark.long
def test_update(tmp_path):
    """Each method draws as much; the peak is that of a process of its own."""
    rows = rows_of(tmp_path, "update.py", "--k", "2", "--methods", "two_stage", "fairseq_mrt")
    assert [row["method"] for row in rows] == ["two_stage", "fairseq_mrt"]
    for row in rows:
        assert row["k"] == 2 and row["seconds"] > 0 and row["peak_bytes"] >= 0
        assert (row["samples"], row["sampled_tokens"]) == (6, 30)
        assert row["seconds_stage_one"] > 0 and row["seconds_backward"] > 0


@pytest.mark.long
def test_update_that_does_not_fit_has_a_reason(tmp_path):
    """Beyond --max-gb a case is reported, not crashed."""
    case = ("--methods", "standard_nokv", "--k", "64", "--length", "30", "--inputs", "16")
    (row,) = rows_of(tmp_path, "update.py", *case, "--max-gb", "0.01")
    assert row["seconds"] is None and row["peak_bytes"] is None
    assert "--max-gb" in row["reason"]


@pytest.mark.long
def test_epoch(tmp_path):
    """A larger β draws less, and auto where rewards spread less; the standard method everything."""
    sizes = ("--k", "4", "--inputs", "8", "--batches", "2", "--betas", "0", "0.5", "auto")
    full, half, auto, standard = rows_of(tmp_path, "epoch.py", *sizes)
    assert (full["method"], full["beta"], full["samples"]) == ("two_stage", 0, 4)
    assert half["beta"] == 0.5 and 0.3 < half["eliminated"] < 0.7
    assert half["sampled_tokens"] < full["sampled_tokens"] == standard["sampled_tokens"]
    assert auto["beta"] == "auto" and 2 < auto["samples"] < 4
    assert (standard["method"], standard["beta"]) == ("standard_kv", None)


@pytest.mark.long
def test_variance(tmp_path):
    """A row a case; eliminated samples are not drawn."""
    sizes = ("--k", "4", "--inputs", "8", "--rounds", "3", "--references", "4")
    cases = ("fused", "fused, K / 2", "beta 0.5", "beta 0.5, at least K / 2", "2 K, top 0.2")
    cases += tuple(
        f"beta 0.3{more}" for more in ("", ", input baseline", ", capability by entropy")
    )
    found = rows_of(tmp_path, "variance.py", *sizes, "--cases", *cases)
    rows = {row["case"]: row for row in found}
    assert set(rows) == set(cases) and rows["2 K, top 0.2"]["samples"] == 8
    assert rows["fused"]["samples"] == 4 and rows["fused, K / 2"]["samples"] == 2
    assert 2 < rows["beta 0.5"]["samples"] < rows["beta 0.5, at least K / 2"]["samples"] < 3.5
    assert len({rows[name]["noise"] for name in rows if name.startswith("beta 0.3")}) > 1
    for row in rows.values():
        assert row["noise_low"] <= row["noise"] <= row["noise_high"]
        assert row["noise"] > 0 and row["cost"] == pytest.approx(row["noise"] * row["seconds"])


def test_noise_of_known_gradients():
    """Half of the true gradient, and noise whose variance is 9 times its square."""
    code = (
        "import common, json, torch, variance; torch.manual_seed(1); n = 10000; "
        "true = torch.randn(n); noisy = lambda scale: scale * torch.randn(n); "
        "given = [true / 2 + noisy(1.5) for _ in range(40)]; "
        "print(json.dumps(variance.noise(given, [true + noisy(0.5), true + noisy(0.5)], 2.0)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True)
    found = json.loads(done.stdout)
    assert found["noise"] == pytest.approx(9, rel=0.05), done.stderr
    assert found["scale"] == pytest.approx(0.5, rel=0.05)
    assert found["cost"] == 2 * found["noise"]
    assert found["noise_low"] < 9 < found["noise_high"] < 1.2 * found["noise"]


@pytest.mark.skipif(not PYTHON_BACK_ENDS, reason="this torch has no back ends in Python")
def test_launches(tmp_path):
    """A step and each part of an update, with the lines that cost most."""
    file = tmp_path / "rows.json"
    size = ("--params", "tiny", "--inputs", "3", "--length", "4", "--k", "2", "--lines", "1")
    run("launches.py", *size, "--json", file)
    rows = json.loads(file.read_text())
    assert all(row.keys() >= HEADER for row in rows)
    wholes = {(row["ends"], row["part"]): row for row in rows if row["what"] == "update"}
    steps = [row for row in rows if row["what"] == "step" and "line" not in row]
    assert [row["ends"] for row in steps] == ["equal", "ragged"]
    assert all(row["launches"] > 20 and row["syncs"] > 0 for row in steps)
    assert wholes["equal", "all"]["launches"] > 500
    lines = {row["line"] for row in rows if row.get("part") == "stage one" and "line" in row}
    assert any(line.startswith("sampling/") for line in lines)


def test_store(tmp_path):
    """Fewer than 20 bytes a sample in memory and in files, and nothing of it in checkpoints."""
    file = tmp_path / "rows.json"
    options = ("--samples", "1.1e6", "--between", "3", "--tokens", "4", "--rounds", "1")
    run("store.py", *options, "--folder", tmp_path, "--json", file)
    rows = {row["what"]: row for row in json.loads(file.read_text())}
    assert rows["memory a sample"]["bytes"] < 20
    assert rows["checkpoint, all samples changed"]["bytes"] < 20 * 1.1e6
    assert rows["checkpoint, 3 updates later"]["bytes"] < 20 * 3 * 4096 + 1.1e6 / 8
    assert rows["fingerprint"]["bytes"] > 2 * 1.1e6 * (4 * 2 + 12)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.long
def test_reward(tmp_path):
    """Every reward; the values equal the library's; the share of an update is known."""
    *rows, update = rows_of(tmp_path, "reward.py", "--k", "2", "--tokenize", "13a")
    assert [row["reward"] for row in rows] == reward_names()
    neural = ("bertscore", "comet", "hf-reward", "model", "sentence-embedding")
    for row in rows:
        if row["reward"] in neural:
            assert "needs a" in row["reason"]  # library or model
            continue
        assert row["pairs"] == 6 and row["us_per_pair"] > 0
        if row["reward"] in OURS:
            assert "no reference library" in row["reason"]
        else:
            assert row["reference_us"] > 0 and row["largest_difference"] < 1e-6
    assert 0 < update["update_share"] < 1


@pytest.mark.slow
@pytest.mark.long
def test_reward_workers(tmp_path):
    """As many rows as processes are asked for, and the trainer's own."""
    file = tmp_path / "rows.json"
    sizes = ("--inputs", "2", "--k", "2", "--rounds", "1", "--workers", "1", "2")
    run("reward_workers.py", *sizes, "--rewards", "chrf", "--json", file)
    rows = json.loads(file.read_text())
    assert [row["workers"] for row in rows] == [0, 1, 2]
    assert all(row["rows"] == 4 and row["seconds"] > 0 and row["speedup"] > 0 for row in rows)
    assert rows[2]["start"] > 0 and rows[2]["mb"] > 50


@pytest.mark.long
def test_peers(tmp_path):
    """Each trainer's update has its numbers, or the reason why not; same samples, same gradient."""
    sizes = ("--k", "3", "--length", "5", "--rows", "9", "--ours=--max-sampled-tokens 64")
    *rows, rloo, grpo, default = rows_of(tmp_path, "peers.py", *sizes)
    settings = [("esrl", ""), ("esrl", "--max-sampled-tokens 64"), *PEERS]
    assert [(row["peer"], row["setting"]) for row in rows] == settings
    for row in rows:
        if row["seconds"] is None:
            assert "not available" in row["reason"]
            continue
        assert row["tokens"] == 3 * 3 * 5 and row["peak_bytes"] > 0
        stages = sum(row[key] for key in row if key.startswith("seconds_"))
        assert stages == pytest.approx(row["seconds"]) and row["seconds_stage_one"] > 0
        if row["peer"] != "esrl" or "reason" not in rows[-1]:
            assert row["to_trl_time"] > 0
    for row in (rloo, grpo, default):
        if "reason" in row:
            assert "not available" in row["reason"]
            continue
        assert row["log_probs"] < 1e-5 and row["rewards"] < 1e-6 and 0 < row["cosine"] < 1.0001
        if row is not default:
            assert max(row["advantages"], row["loss"]) < 1e-5 and row["gradient"] < 1e-4


def test_peers_are_compared_with_the_fastest():
    """Time with the least one, and memory with what that one takes."""
    code = (
        "import json, peers; "
        "cases = [('x', 8, 'esrl', '', 2, 6), ('x', 8, 'trl_rloo', 16, 8, 1), "
        "('x', 8, 'trl_grpo', 64, 4, 3), ('y', 8, 'esrl', '', 1, 1)]; "
        "rows = peers.table({case[:4]: [{'seconds': case[4], 'peak_bytes': case[5]}] "
        "for case in cases}); "
        "print(json.dumps([[row['to_trl_time'], row['to_trl_peak']] for row in rows]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [[0.5, 2], [2, 1 / 3], [1, 1], [None, None]], done.stderr


def test_plot(tmp_path):
    """The picture is drawn from rows of any number of files."""
    pytest.importorskip("matplotlib")
    about = {"machine": "none", "dtype": "fp32", "commit": "none", "params": "3M", "length": 16}
    rows = [
        {**about, "parameters": 3e6, "k": k, "method": "two_stage", "seconds": k, "peak_bytes": 1}
        for k in (1, 4)
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    run("plot.py", file, "--output", tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 0


@pytest.mark.slow
def test_memory_by_part(tmp_path):
    """What is computed is what lives after an update, but for tables of positions; what is frozen
    needs less, and adapters no frozen model."""
    pytest.importorskip("transformers", reason="extra hf is not installed")
    pytest.importorskip("peft", reason="extra lora is not installed")
    file = tmp_path / "rows.json"
    run("memory.py", "--params", "small", "--measure", "--json", file)
    rows = json.loads(file.read_text())
    parts = ("weights_gb", "training_gb", "kl_gb")
    computed = [sum(row[part] for part in parts) for row in rows]
    assert computed == sorted(computed, reverse=True) and rows[-1]["kl_gb"] == 0
    for row, expected in zip(rows, computed):
        table = 2 * 1026 * 256 * 4 / 1e9
        copies = 1 if row["trained"] == "lora" else 2
        assert row["measured_gb"] == pytest.approx(expected + copies * table, rel=0.01)
