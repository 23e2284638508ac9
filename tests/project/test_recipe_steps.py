"""What steps.sh does for every recipe: words, plan, and steps that end in whatever way."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fairseq import options
from recipe_stand_ins import environment

import esrl_fairseq  # noqa: F401 (registers its options)

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/run.sh"))
OF_THEIR_OWN = ("nllb_qe", "reward_model_en_de", "rlhf_llama", "rlhf_sentiment")  # other steps
SMALL = """\
#!/usr/bin/env bash
# A recipe of three steps.
#
# Launch:  run.sh
# shellcheck disable=SC1091
source "$LIB"
recipe small de en
write() { echo "> $1 ${SETTING:-}"; sleep "${SLEEP:-0}"; echo "$1" >"$1.part"; mv "$1.part" "$1"; }
small_steps() {
    about "the first" '' first 5
    step one "" write first
    about "the second" first second 7
    step two "${SETTING:-}" write second
    about "the third" second third 1
    step three "" write third
    finish "The model is $WORK/third." "Next: nothing."
}
run_steps small_steps
"""


def call(script, *words, **variables):
    return subprocess.run(
        [str(script), *words],
        env=environment(LIB=str(RECIPES / "lib.sh"), **variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.fixture
def small(tmp_path):
    """The recipe, and a call of it in a folder with blanks in its name."""
    script = tmp_path / "run.sh"
    script.write_text(SMALL)
    script.chmod(0o755)
    work = tmp_path / "a work folder"

    def run(*words, **variables):
        return call(script, *words, ESRL_WORK_DIR=str(work), **variables)

    run.work, run.script = work, script
    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_plan(name, tmp_path):
    """It names all steps with what they read and write, and writes nothing."""
    work = tmp_path / "no such" / "folder"
    compare = {} if name in OF_THEIR_OWN else {"COMPARE": "1"}
    result = call(RECIPES / name / "run.sh", "--dry-run", ESRL_WORK_DIR=str(work), **compare)
    assert result.returncode == 0, result.stderr
    assert not result.stderr and not work.parent.exists()
    steps = re.findall(r"^ ?\d+\. (\S+) +to do$", result.stdout, re.M)
    assert len(steps) >= 6 and steps[0] == "fetch" and len(set(steps)) == len(steps)
    for section in re.split(r"^ ?\d+\. ", result.stdout, flags=re.M)[1:]:
        assert section.count("\n    reads ") == 1 and section.count("\n    $ ") >= 1
    room = r"needs about \d+ [MG]B of disk \(estimated\); \d+ [MG]B are free"
    assert re.search(room, result.stdout)
    commands = re.findall(r"\$ (fairseq-train.*?)\n\n", result.stdout, re.S)
    assert commands
    for command in commands:
        check_options(shlex.split(command.replace("\\\n", " ").replace("ESRL_HOURS", "1"))[1:])


def check_options(words):
    """fairseq knows them, as far as its parser can tell without data."""
    found = options.parse_args_and_arch(options.get_training_parser(), words)
    assert found.save_dir == words[words.index("--save-dir") + 1]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_help_and_refuses_other_words(name, tmp_path):
    variables = {"ESRL_WORK_DIR": str(tmp_path / "work"), "PATH": "/usr/bin:/bin"}
    told = call(RECIPES / name / "run.sh", "--help", **variables)
    assert told.returncode == 0 and "Launch:" in told.stdout and "--dry-run" in told.stdout
    assert "shellcheck" not in told.stdout
    unknown, lone = "is no word of a recipe", "needs the name of a step"
    for words, why in (
        (["--dryrun"], unknown), (["all"], unknown), (["--until", "mle", "mle"], unknown),
        (["--until"], lone), (["--from", "--until"], lone), (["--until="], lone),
    ):  # fmt: skip
        refused = call(RECIPES / name / "run.sh", *words, **variables)
        assert refused.returncode == 1 and refused.stdout == "" and why in refused.stderr
        assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_steps_that_are_not_there_are_refused(small):
    for word in ("--until", "--from"):
        result = small(word, "four")
        assert result.returncode == 1
        assert "there is no step 'four'; the steps are one two three" in result.stderr
    assert "comes before --from three" in small("--until", "one", "--from=three").stderr


def test_until_and_going_on(small):
    result = small("--until", "two")
    assert result.returncode == 0, result.stderr
    assert "stopped after step two" in result.stdout and "Next:" in result.stdout
    assert not (small.work / "third").exists() and "The model" not in result.stdout
    plan = small("--dry-run").stdout
    assert re.findall(r"^ \d\. (\S+ +.*)$", plan, re.M) == [
        f"{'one':24} done", f"{'two':24} done", f"{'three':24} to do"
    ]  # fmt: skip
    assert "needs about 1 MB" in plan
    plan = small("--dry-run", "--until=two").stdout
    assert "two" in plan and "three" not in plan
    result = small()
    assert result.stdout.count("done before") == 2
    assert result.stdout.endswith(f"The model is {small.work}/third.\nNext: nothing.\n")


def test_from_puts_away_what_there_was(small):
    assert small().returncode == 0
    (small.work / "second").write_text("mine\n")
    plan = small("--dry-run", "--from", "two").stdout
    assert plan.count("once more (--from)") == 2
    result = small("--from", "two", SETTING="other")
    assert result.returncode == 0, result.stderr
    assert "one: done before" in result.stdout and "> second other" in result.stdout
    assert (small.work / "second").read_text() == "second\n"
    assert (small.work / "replaced" / "1" / "second").read_text() == "mine\n"
    assert (small.work / "replaced" / "1" / "third").exists()
    assert small("--from", "three", SETTING="other").returncode == 0
    assert (small.work / "replaced" / "2" / "third").exists()


def test_from_needs_what_is_before(small):
    for words in ([], ["--dry-run"]):
        told = refused(small("--from", "two", *words))
        assert "step one, which comes before, is not done" in told
    assert not (small.work / "first").exists()


def test_words_that_contradict_each_other(small):
    for word in ("--until", "--from"):
        assert f"{word} is given twice" in refused(small(word, "one", word, "two"))


def refused(result):
    """Its one sentence."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_work_folder_that_cannot_be_written(words, small, tmp_path):
    """A file is in its way; it would lie in a system's folder; its name is a link to nowhere."""
    (tmp_path / "a file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "where")
    folders = [tmp_path / "a file" / "work"]
    folders += (
        [] if words else ["/proc/work", tmp_path / "link"]
    )  # root may write to /proc, it says
    for folder in folders:
        told = refused(call(small.script, *words, ESRL_WORK_DIR=str(folder)))
        assert str(folder) in told and "set ESRL_WORK_DIR to another" in told
    assert not (tmp_path / "no").exists()


def test_a_work_folder_is_of_one_recipe(small, tmp_path):
    """The steps of two recipes have the same names, and one would take the other's for done."""
    assert small("--until", "one").returncode == 0
    other = tmp_path / "other.sh"
    other.write_text(SMALL.replace("recipe small", "recipe other"))
    other.chmod(0o755)
    for words in ([], ["--dry-run"]):
        told = refused(call(other, *words, ESRL_WORK_DIR=str(small.work)))
        assert "is that of recipe small" in told
    assert small().returncode == 0


def test_too_little_room_is_said_before_the_first_step(small):
    small.script.write_text(SMALL.replace("first 5", "first 900000000"))
    assert "has too little room" in small("--dry-run").stdout
    result = small()
    assert result.returncode == 0 and result.stderr.startswith(
        "warning: this needs about 900000 GB"
    )
    assert small().stderr == ""


def test_a_disk_that_is_full_before_a_step(small, tmp_path):
    """Nothing of its settings is there: the same command goes on."""
    assert small("--until", "one").returncode == 0
    part = small.work / "steps" / "two.settings.part"
    part.symlink_to("/dev/full")
    result = small()
    assert result.returncode == 1 and "step two failed" in result.stderr
    part.unlink()
    assert small().returncode == 0


def test_variables_that_no_recipe_reads(small):
    """Mistyped ones; those of the tests, and of others, are none."""
    variables = {"ESRL_UPDATE": "3", "MLE_EPOCH": "3", "ESRL_TEST_DATA": "/x", "MLE_SEED": "1"}
    notes = re.findall(r"reads the variable (\S+),", small("--dry-run", **variables).stdout)
    assert notes == ["ESRL_UPDATE", "MLE_EPOCH"]
    result = small("--until", "one", **variables)
    assert result.returncode == 0 and result.stderr.count("warning: no recipe reads") == 2


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("demo", "MLE_UPDATES TOKENS"),
        ("multi30k_de_en", "MLE_UPDATES TOKENS"),  # its files source others
        ("wmt18_de_en", ""),
        ("multi30k_marian", "MLE_EPOCHS TOKENS BPE_MERGES"),
        ("rlhf_sentiment", "MLE_UPDATES TOKENS GENERATE_ARGS"),
        ("nllb_qe", "MLE_EPOCHS MLE_UPDATES TOKENS BPE_MERGES MLE_ARGS GENERATE_ARGS"),
    ],
)
def test_variables_that_other_recipes_read(name, others, tmp_path):
    """Each that is set and without effect is named in the plan."""
    variables = {"MLE_EPOCHS": "3", "MLE_UPDATES": "7", "BPE_MERGES": "99", "TOKENS": "4096"}
    variables |= {"MLE_ARGS": "--patience 3", "GENERATE_ARGS": "--lenpen 1", "COMET": "0"}
    variables["ESRL_WORK_DIR"] = str(tmp_path / "work")
    result = call(RECIPES / name / "run.sh", "--dry-run", **variables)
    assert result.returncode == 0, result.stderr
    notes = re.findall(r"does not read the variable (\S+),", result.stdout)
    assert sorted(notes) == sorted(others.split())


def test_stopping_after_a_model_that_there_is_not(tmp_path):
    script, work = RECIPES / "rlhf_llama" / "run.sh", str(tmp_path / "work")
    told = refused(call(script, "--dry-run", ESRL_WORK_DIR=work, ESRL_STOP_AFTER="mle"))
    assert "take --until STEP" in told


@pytest.mark.parametrize("path", ["raw", "data-bin", "mle/checkpoint_last.pt"])
@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_folder_of_other_work_is_refused(words, path, small):
    """Steps would overwrite what is there, or go on from it."""
    (small.work / path).mkdir(parents=True)
    told = refused(small(*words))
    assert f"has a '{path.partition('/')[0]}' that no recipe made" in told
    assert [x.name for x in small.work.iterdir()] == [path.partition("/")[0]]


def test_a_tilde_that_the_shell_did_not_replace(small):
    told = refused(call(small.script, ESRL_WORK_DIR="~/work"))
    assert "write $HOME" in told


def test_a_search_path_of_cd(small):
    """With CDPATH exported, cd prints where it went."""
    (small.script.parent / "recipes" / "demo").mkdir(parents=True)
    script = RECIPES / "demo" / "run.sh"
    variables = {"ESRL_WORK_DIR": str(small.work), "CDPATH": f"{small.script.parent}:."}
    command = [str(script.relative_to(RECIPES.parent)), "--dry-run"]
    result = subprocess.run(
        command, cwd=RECIPES.parent, env=environment(**variables), capture_output=True, text=True
    )
    assert result.returncode == 0 and not result.stderr


def test_two_steps_of_one_name_are_refused(tmp_path):
    for name, own in (("nllb_qe", "nllb"), ("multi30k_marian", "model")):
        script, work = RECIPES / name / "run.sh", str(tmp_path / "work")
        told = refused(call(script, "--dry-run", ESRL_WORK_DIR=work, ESRL_RUN=own))
        assert f"ESRL_RUN is '{own}', which gives two steps the name" in told


@pytest.mark.parametrize(
    ("name", "variables", "told"),
    [
        ("multi30k_marian", {"MARIAN_CONFIG": "mine.json"}, "/mine.json', but there is no such"),
        ("multi30k_marian", {"VOCABULARY": "many"}, "VOCABULARY is 'many', but must be a whole"),
        ("multi30k_marian", {"LONGEST": "0"}, "LONGEST is '0', but must be a whole number from 1"),
        ("nllb_qe", {"SOURCES": "x"}, "SOURCES is 'x'"),
        ("nllb_qe", {"LORA_RANK": "0"}, "LORA_RANK is '0'"),
        ("nllb_qe", {"LR": "fast"}, "LR is 'fast', but must be a number, more than 0"),
        ("nllb_qe", {"MONO": "texts"}, "/texts', but there is no such file"),
        ("nllb_qe", {"TARGET": "eng_Latn"}, "are both 'eng_Latn'"),
    ],
)
def test_variables_of_one_recipe_are_checked(name, variables, told, tmp_path):
    variables = {"ESRL_WORK_DIR": str(tmp_path / "work"), **variables}
    assert told in refused(call(RECIPES / name / "run.sh", "--dry-run", **variables))


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("name", "module"),
    [("iwslt14_de_en", "fairseq"), ("wmt14_en_de", "fairseq"), ("cnn_dm", "pyarrow"),
     ("rlhf_llama", "transformers")],
)  # fmt: skip
def test_a_data_folder_that_lacks_something(name, module, words, tmp_path):
    """Told before anything is done, with the file's name."""
    data, work = tmp_path / "my data", tmp_path / "work"
    variables = {"ESRL_DATA_DIR": str(data), "ESRL_WORK_DIR": str(work), "LLAMA": "a/model"}
    script = RECIPES / name / "run.sh"
    said = refused(call(script, *words, **variables))
    if not words and f"needs the Python module {module}" in said:
        pytest.skip(f"{module} is not installed")
    assert "there is no such folder" in said
    data.mkdir()
    found = re.findall(r"has no file (\S+) \(nor ", refused(call(script, *words, **variables)))
    assert len(found) == 1
    (data / f"{found[0]}.gz").write_text("")
    if name in ("iwslt14_de_en", "rlhf_llama"):  # they have no other
        if words:
            result = call(script, *words, **variables)
            assert result.returncode == 0 and f"reads {data}; writes raw" in result.stdout
    else:
        assert found[0] not in refused(call(script, *words, **variables)).split(" (nor ")[0]


def test_other_settings_are_refused_and_planned_so(small):
    assert small("--until", "two", SETTING="a").returncode == 0
    result = small(SETTING="b")
    assert result.returncode == 1
    assert "then: a" in result.stderr and "now:  b" in result.stderr
    assert "other settings: a run would refuse it" in small("--dry-run", SETTING="b").stdout


def started(small, **variables):
    """In a process group of its own, as from a terminal."""
    return subprocess.Popen(
        [str(small.script)],
        env=environment(LIB=str(RECIPES / "lib.sh"), ESRL_WORK_DIR=str(small.work), **variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, signal.SIGKILL) for name in ("one", "two", "three")),
        *(("two", number) for number in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_killed_in_every_step(small, name, number):
    """The same command goes on: with the step that was interrupted, not with those before."""
    before = {"one": 0, "two": 1, "three": 2}[name]
    if before:
        assert small("--until", ["one", "two"][before - 1]).returncode == 0
    process = started(small, SLEEP="60")
    wait_for(small.work / "steps" / f"{name}.settings")
    time.sleep(0.2)
    os.killpg(process.pid, number)
    assert process.wait() != 0
    process.stderr.close()
    assert not (small.work / "steps" / f"{name}.done").exists()
    assert "begun, goes on" in small("--dry-run").stdout
    result = small()
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done before") == before
    assert (small.work / "third").exists()


def test_a_second_run_at_once_is_refused(small):
    """Also while a process of a run that was killed is still there."""
    process = started(small, SLEEP="60")
    wait_for(small.work / "steps" / "one.settings")
    result = small()
    assert result.returncode == 1 and "another run works in" in result.stderr
    assert "> first" not in result.stdout
    process.kill()  # the shell alone: its step sleeps on
    process.wait()
    process.stderr.close()
    result = small()
    assert result.returncode == 1 and "or a process that it left" in result.stderr
    os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while (result := small()).returncode and time.monotonic() < end:
        time.sleep(0.1)
    assert result.returncode == 0, result.stderr


def test_a_full_disk(small):
    """Told as that; when there is room, the same command goes on."""
    small.work.mkdir()
    (small.work / "second.part").symlink_to("/dev/full")
    result = small()
    assert result.returncode == 1
    assert "is full" in result.stderr and "The same command goes on" in result.stderr
    assert not (small.work / "steps" / "two.done").exists()
    (small.work / "second.part").unlink()
    result = small()
    assert result.returncode == 0 and result.stdout.count("done before") == 1


def test_missing_things_are_told_by_the_plan_and_refused_by_a_run(tmp_path):
    """A module and a variable that the recipe cannot do without."""
    name = RECIPES / "rlhf_llama" / "run.sh"
    variables = {"ESRL_WORK_DIR": str(tmp_path / "work")}
    assert "Note: set LLAMA to the folder" in call(name, "--dry-run", **variables).stdout
    result = call(name, **variables)
    assert result.returncode == 1 and result.stderr.startswith("error: ")


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_no_comparison_where_there_is_no_start_model(name, tmp_path):
    script = RECIPES / name / "run.sh"
    result = call(script, "--dry-run", ESRL_WORK_DIR=str(tmp_path / "work"), COMPARE="1")
    assert result.returncode == 1 and "MLE_CONTINUED and COMPARE are for recipes" in result.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"COMPARE": "yes"}, "COMPARE is 'yes', but must be one of: 0 1"),
        ({"GPUS": "3"}, "GPUS is 3, but must divide 4096"),
        ({"GPUS": "none"}, "GPUS is 'none'"),
        ({"PRECISION": "int8"}, "PRECISION is 'int8', but must be fp16, bf16 or fp32"),
        ({"AVERAGE": "x"}, "AVERAGE is 'x'"),
        ({"ESRL_RUN": "a b"}, "ESRL_RUN is 'a b', but is a folder's name"),
        ({"ESRL_RUN": "-x"}, "ESRL_RUN is '-x'"),
        ({"ESRL_RUN": "mle"}, "ESRL_RUN is 'mle', but that is a folder or step"),
        ({"GPUS": "0"}, "GPUS is '0', but must be a whole number from 1"),
        ({"MLE_EPOCHS": "-1"}, "MLE_EPOCHS is '-1', but must be a whole number from 1"),
        ({"ESRL_UPDATES": "1e3"}, "ESRL_UPDATES is '1e3'"),
        ({"BPE_MERGES": "0"}, "BPE_MERGES is '0'"),
        ({"TOKENS": "abc"}, "TOKENS is 'abc'"),
        ({"INPUTS": "08"}, "INPUTS is '08'"),
        ({"SEED": "x"}, "SEED is 'x', but must be a whole number from 0"),
        ({"SEED": "99999999999"}, "SEED is '99999999999'"),
        ({"SACREBLEU_SEED": "1.5"}, "SACREBLEU_SEED is '1.5'"),
        ({"ESRL_STALL_SECONDS": "0"}, "ESRL_STALL_SECONDS is '0', but must be a number, more than"),
        ({"COMET": "yes"}, "COMET is 'yes'"),
        ({"ESRL_STOP_AFTER": "foo"}, "ESRL_STOP_AFTER is 'foo'"),
        ({"COMPARE": "1", "ESRL_STOP_AFTER": "mle"}, "contradict each other"),
        ({"ESRL_MIRROR": "file:///x", "ESRL_DATA_DIR": "/x"}, "are both set"),
        ({"ESRL_MIRROR": "/a/mirror"}, "but must begin with https://, http:// or file://"),
        (
            {"MLE_CHECKPOINT": "/no/mle.pt"},
            "there is no file /no/mle.pt (the model needs bpe.codes",
        ),
    ],
)
def test_variables_are_checked(variables, told, tmp_path):
    script = RECIPES / "iwslt14_de_en" / "run.sh"
    result = call(script, "--dry-run", ESRL_WORK_DIR=str(tmp_path / "work"), **variables)
    assert result.returncode == 1 and told in result.stderr
    assert result.stderr.count("\n") == 1


def test_options_of_later_steps_are_checked(tmp_path):
    """Before the first one, which may be hours earlier; on several lines, too."""
    script, work = RECIPES / "iwslt14_de_en" / "run.sh", tmp_path / "work"
    told = refused(call(script, ESRL_WORK_DIR=str(work), GENERATE_ARGS="--beam 4\n--lenpem 1"))
    assert "step generate-mle-average would not take its options: unrecognized" in told
    assert "--lenpem" in told and not (work / "raw").exists()


def test_options_of_a_plan(monkeypatch):
    """A word that is no option, a value of another kind; and what is right."""
    spec = importlib.util.spec_from_file_location("recipe_options", RECIPES / "options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plan = "\n 1. fetch     to do\n    $ download a b\n\n"
    plan += "12. esrl-s1  to do\n    $ torchrun fairseq-train \\\n      d"
    plan += "\n13. control  to do\n    $ fairseq-train d --stop-time-hours ESRL_HOURS"
    assert list(module.commands(plan)) == [
        ("fetch", ["download", "a", "b"]), ("esrl-s1", ["torchrun", "fairseq-train", "d"]),
        ("control", ["fairseq-train", "d", "--stop-time-hours", "1"]),
    ]  # fmt: skip
    monkeypatch.setattr("argparse.ArgumentParser.exit", module.leave)
    monkeypatch.setattr("argparse.ArgumentParser.print_usage", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["pytest"])
    esrl = ["fairseq-train", "d", "--arch", "transformer", "--task", "esrl_translation",
            "--criterion", "esrl"]  # fmt: skip
    user_dir = str(RECIPES.parent / "esrl_fairseq")
    module.parse(["x", *esrl, "--num-samples", "4"], user_dir)
    module.parse(["generate", "mle", "--lenpen", "1"], user_dir)
    for words in (["--num-samples", "many"], ["--no-such-option"]):
        with pytest.raises(ValueError, match=words[-1]):
            module.parse([*esrl, *words], user_dir)


@pytest.mark.parametrize(
    ("gpus", "tokens", "expected"),
    [("1", "", ("4096", "8")), ("8", "", ("4096", "1")), ("16", "", ("2048", "1")),
     ("2", "2048", ("2048", "8")), ("4", "3000", ("2048", "4"))],
)  # fmt: skip
def test_equal_batches_on_any_number_of_gpus(gpus, tokens, expected, tmp_path):
    """WMT'14: 32,768 tokens an update, none of the GPUs more than TOKENS at a time."""
    script, work = RECIPES / "wmt14_en_de" / "run.sh", str(tmp_path / "work")
    variables = {"GPUS": gpus, "LAUNCH": "srun torchrun --nnodes 2", "PRECISION": "bf16"}
    plan = call(script, "--dry-run", ESRL_WORK_DIR=work, TOKENS=tokens, **variables).stdout
    (command,) = re.findall(r"\$ srun torchrun.*?--save-dir mle .*?\n\n", plan, re.S)
    words = command.replace("\\\n", " ").split()
    size, frequency = (
        words[words.index(option) + 1] for option in ("--max-tokens", "--update-freq")
    )
    assert (size, frequency) == expected and "--bf16" in words
    assert int(size) * int(frequency) * int(gpus) == 32768


def test_compare_plans_the_methods_from_one_model(tmp_path):
    script = RECIPES / "multi30k_de_en" / "run.sh"
    plan = call(script, "--dry-run", ESRL_WORK_DIR=str(tmp_path), COMPARE="1").stdout
    commands = {}
    for text in re.findall(r"\$ fairseq-train.*?\n\n", plan, re.S):
        words = text.replace("\\\n", " ").split()
        commands[words[words.index("--save-dir") + 1]] = words
    runs = [f"esrl-s1{end}" for end in ("", "-mle-continued", "-reinforce", "-mrt", "-ppo")]
    assert list(commands)[2:] == runs
    for run in runs:
        words = commands[run]
        start = words[words.index("--finetune-from-model") + 1]
        assert start == "mle-decay/checkpoint_best.pt"
    assert "standard" in commands[runs[2]] and "standard" in commands[runs[3]]
    assert "--rescoring-dropout" in commands[runs[0]] and "--rescoring-dropout" in commands[runs[2]]
    assert "--rescoring-dropout" not in commands[runs[4]]
    assert f"score mle-decay {' '.join(runs)}" in " ".join(plan.replace("\\\n", " ").split())
