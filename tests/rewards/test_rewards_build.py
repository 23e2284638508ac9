"""Rewards by name: terms, weighted sums, the user's own functions; and what the criterion takes."""

import importlib
import math
import sys
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from helpers import make_batch, make_criterion, make_task

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import Reward, build_reward, register_reward, score_rows
from esrl_fairseq.rewards import base as rewards_base
from esrl_fairseq.rewards.build import is_switch

SOURCES = ["ein hund", "ein hund", "zwei katzen schlafen"]
HYPOTHESES = ["a dog", "the dog runs", ""]
REFERENCES = [["a dog"], ["a dog"], ["two cats sleep", "two cats are asleep"]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory, and no trace of what is imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(rewards_base, "_REWARDS", dict(rewards_base._REWARDS))


def ask(name, **options):
    return build_reward(name, **options)(SOURCES, HYPOTHESES, REFERENCES)


# --- terms ------------------------------------------------------------------------------------


def test_length_by_hand():
    reward = build_reward("length")
    texts = ["a b", "a", "a b c d e f", "", "a b c d e"]
    references = [["x y"], ["x y"], ["x y", "x y z"], ["x"], ["x y z", "v w x y z"]]
    np.testing.assert_allclose(reward([""] * 5, texts, references), [1, 1 / 2, 1 / 2, 0, 1])


def test_repetition_by_hand():
    values = build_reward("repetition")(
        [""] * 5, ["a b c d e", "", "word", "a b a b", "a a a a a"], None
    )
    # a b a b: 2 of 3 bigrams, 2 of 2 trigrams; a a a a a: 1 of 4, 1 of 3, 1 of 2
    np.testing.assert_allclose(values, [1, 1, 1, 2 / 3, 1 / 24], rtol=1e-6)


# --- weighted sums ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, weights, bounds",
    [
        ("bleu:0.5+chrf:0.5", {"bleu": 0.5, "chrf": 0.5}, (0, 1)),
        ("bleu+length:0.1", {"bleu": 1, "length": 0.1}, (0, 1.1)),
        (" bleu : 0.7 + ter:0.2+repetition: .1 ", {"bleu": 0.7, "ter": 0.2, "repetition": 0.1},
         (0, 1)),
        ("bleu:2", {"bleu": 2}, (0, 2)),
        ("chrf+length:-1", {"chrf": 1, "length": -1}, (-1, 1)),
        ("length+chrf:1e-1", {"length": 1, "chrf": 0.1}, (0, 1.1)),
    ],
)  # fmt: skip
def test_weighted_sums(name, weights, bounds):
    reward = build_reward(name)
    assert reward.range == bounds
    expected = sum(weight * ask(part).astype(float) for part, weight in weights.items())
    np.testing.assert_allclose(ask(name), expected, atol=1e-6)
    rows = reward.score(SOURCES[1:], REFERENCES[1:], HYPOTHESES, [0, 0, 1])
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    for part, weight in weights.items():
        assert f"{weight:g} * {build_reward(part).signature()}" in reward.signature()


def test_a_sum_needs_what_its_parts_need():
    assert not build_reward("repetition:2").needs_references
    assert build_reward("repetition+bleu").needs_references


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "a name is missing"),
        ("bleu+", r"reward 'bleu\+': a name is missing; weighted sums are written bleu:0.5"),
        ("bleu++chrf", "a name is missing"),
        (":0.5+bleu", "a name is missing"),
        ("bleu:", "the weight of 'bleu' is '', but must be a number"),
        ("bleu:half+chrf", "the weight of 'bleu' is 'half'"),
        ("bleu:zero+chrf", "the weight of 'bleu' is 'zero', but must be a number, .*0 to log it"),
        ("bleu:nan", "the weight of 'bleu' is 'nan'"),
        ("bleu:-inf", "the weight of 'bleu' is '-inf'"),
        ("bleu:0.5:0.5", "the weight of 'bleu' is '0.5:0.5'"),
        ("bleu:0.5+bleu:0.5", "'bleu' comes twice"),
        ("bleu:0.5+blue:0.5", "unknown reward 'blue'.*bleu, .*length.*python:module.function"),
        ("0.5*bleu", r"unknown reward '0.5'.*such as bleu:0.5\+chrf:0.5"),
        ("python", "unknown reward 'python'"),
        ("bleu:0.5+chfr:0.5", "unknown reward 'chfr' .did you mean 'chrf'.*: choose"),
        ("Python:my.f", "the weight of 'Python' is 'my.f' .did you mean 'python:'"),
    ],
)
def test_names_that_cannot_be_read(name, message):
    with pytest.raises(EsrlError, match=message):
        build_reward(name)


def test_options_of_parts():
    """They reach the part of that name, and change nothing else."""
    options = {"bleu": {"tokenize": "none"}, "chrf": {"word_order": 2}}
    reward = build_reward("bleu:0.5+length:0.5", part_options=options)
    assert "tok:none" in reward.signature()
    assert "tok:none" in build_reward("bleu", part_options=options).signature()
    assert "tok:char" in build_reward("bleu", options, tokenize="char").signature()
    with pytest.raises(EsrlError, match="is a weighted sum and takes no options itself"):
        build_reward("bleu:0.5+chrf:0.5", tokenize="none")


@pytest.mark.parametrize("name", ["a+b", "a:b", "a*b"])
def test_names_that_cannot_be_registered(name, registry):
    with pytest.raises(EsrlError, match="cannot be named"):
        register_reward(name)(type("Mine", (Reward,), {}))


# --- python:module.function -------------------------------------------------------------------


def example():
    """The code in docs/rewards.md."""
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    start = page.index("# my_rewards.py")
    return page[start : page.index("```", start)]


def test_example_of_the_documentation(folder):
    (folder / "my_rewards.py").write_text(example())
    reward = build_reward("python:my_rewards.ends_well")
    assert reward.range == (0, 1) and reward.name == "python:my_rewards.ends_well"
    assert reward.signature().startswith("python:my_rewards.ends_well|source:")
    np.testing.assert_array_equal(ask("python:my_rewards.ends_well"), [1, 0, 0])
    mixed = build_reward("python:my_rewards.ends_well:0.3+bleu:0.7")
    assert mixed.range == (0, 1)
    expected = 0.7 * ask("bleu") + [0.3, 0, 0]
    np.testing.assert_allclose(mixed(SOURCES, HYPOTHESES, REFERENCES), expected, atol=1e-6)


def test_what_a_function_gets(folder):
    """Lists, row by row, each distinct pair once; the references that there are."""
    (folder / "spy.py").write_text(
        "calls = []\ndef spy(*args):\n    calls.append(args)\n    return [0] * len(args[1])\n"
    )
    reward = build_reward("python:spy.spy")
    assert reward.range == (-math.inf, math.inf) and reward.higher_is_better
    score_rows(reward, ["s", "t"], ["x", "y", "x", "x"], [["r", "q"], []], [0, 1, 1, 0], [7, 8])
    ((sources, hypotheses, references),) = importlib.import_module("spy").calls
    assert (sources, hypotheses) == (["s", "t", "t"], ["x", "y", "x"])
    assert references == [["r", "q"], [], []]
    assert reward(["s"], ["x"]).tolist() == [0]
    score_rows(reward, ["s", "t"], ["x", "y"], [["", "q"], [" "]], [0, 1], [7, 8])  # empty lines
    assert importlib.import_module("spy").calls[-1][-1] == [["q"], []]


@pytest.mark.parametrize("says, needs", [("", False), ("= None", False), ("= False", False),
                                         ("= True", True)])  # fmt: skip
@pytest.mark.parametrize("name", ["python:mod.f", "python:mod.f:0.5+repetition:0.5"])
def test_references_are_demanded_by_functions_that_say_so(says, needs, name, folder):
    text = "def f(s, h, r): return [0.5] * len(h)\n"
    (folder / "mod.py").write_text(text + (f"f.needs_references {says}\n" if says else ""))
    reward = build_reward(name)
    assert reward.needs_references == needs
    assert reward.references_optional == (says in ("", "= None"))
    if needs:
        with pytest.raises(EsrlError, match="needs references, but sample 0 has none"):
            reward(["s"], ["x"])
    else:
        assert len(reward(["s"], ["x"])) == 1


@pytest.mark.parametrize(
    "body",
    [
        "[float(r[0] == h) for h, r in zip(hypotheses, references)]",  # IndexError
        "[max(len(r) for r in refs) for refs in references]",  # ValueError
        "[np.mean([len(r) for r in refs]) for refs in references]",  # NaN
        "[0.5 for refs in references for r in refs]",  # too few
    ],
)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize("name", ["python:mod.f", "python:mod.f+repetition"])
def test_failures_without_references_are_hinted_at(body, name, folder):
    """The sample that has none is named, but not where the function said that it needs none."""
    text = f"import numpy as np\ndef f(sources, hypotheses, references):\n    return {body}\n"
    (folder / "mod.py").write_text(text)
    given = [["s", "t"], ["x", "y"], [["r"], [""]], [0, 1], [7, 8]]
    hint = "; the data have no references for sample 8: if the reward needs them, give the data"
    with pytest.raises(EsrlError, match=hint):
        score_rows(build_reward(name), *given)
    given[2] = None
    with pytest.raises(EsrlError, match=hint.replace("8", "7")):
        score_rows(build_reward(name), *given)
    (folder / "mod.py").write_text(text + "f.needs_references = False\n")
    sys.modules.pop("mod")
    with pytest.raises(EsrlError) as caught:
        score_rows(build_reward(name), *given)
    assert "references" not in str(caught.value)


def test_other_failures_have_no_hint(folder):
    """Where there are references, and where a value is out of range."""
    (folder / "mod.py").write_text(
        "def f(s, h, r): raise OSError('no server')\ndef g(s, h, r): return [2] * len(h)\n"
        "g.range = (0, 1)\n"
    )
    for name, references in (("f", [["r"]]), ("g", None)):
        with pytest.raises(EsrlError) as caught:
            build_reward(f"python:mod.{name}")(["s"], ["x"], references)
        assert "references" not in str(caught.value)


def test_packages_and_neighbours_are_found(folder):
    (folder / "mine" / "deep").mkdir(parents=True)
    (folder / "neighbour.py").write_text("VALUE = 0.25\n")
    (folder / "mine" / "deep" / "mod.py").write_text(
        "def late(s, h, r):\n    import neighbour\n    return [neighbour.VALUE] * len(h)\n"
    )
    assert ask("python:mine.deep.mod.late:2").tolist() == [0.5] * 3


def test_installed_modules_come_first(folder):
    (folder / "json.py").write_text("raise RuntimeError('hidden')\n")
    (folder / "statistics.py").write_text("def mine(s, h, r): return h\n")
    sys.modules.pop("statistics", None)
    with pytest.raises(EsrlError, match="'statistics' .*statistics.py.* has no function 'mine'"):
        build_reward("python:statistics.mine")


@pytest.mark.parametrize(
    "name, message",
    [
        ("python:", "write python:module.function"),
        ("python:ends_well", "write python:module.function"),
        ("python:.mod.f", "write python:module.function"),
        ("python:my-mod.f", "write python:module.function"),
        ("python:nowhere.f", "no module 'nowhere', neither in .* nor where Python searches"),
        ("python:mod.sub.f", "no module 'mod.sub'"),
        ("python:mod.g", "module 'mod' .*mod.py.* has no function 'g'"),
        ("python:mod.rangles", "no function 'rangles' .did you mean 'rangeless'"),
        ("python:borken.f", "no module 'borken' .did you mean 'broken'"),
        ("python:mod.number", "'number' of module 'mod' .* is of type int, but must be a function"),
        ("python:mod.Class", "'Class' of module 'mod' .* is of type type, but must be a function"),
        ("python:broken.f", "importing 'broken' raised ModuleNotFoundError: No module named 'abs"),
        ("python:syntax.f", "importing 'syntax' raised SyntaxError"),
        ("python:mod.upside_down", "attribute range must be two numbers.* not \\(1, 0\\)"),
        ("python:mod.rangeless", "attribute range must be two numbers.* not 'wide'"),
    ],
)
def test_functions_that_cannot_be_used(name, message, folder):
    (folder / "mod.py").write_text(
        "number = 1\nclass Class: pass\n"
        "def upside_down(s, h, r): pass\nupside_down.range = (1, 0)\n"
        "def rangeless(s, h, r): pass\nrangeless.range = 'wide'\n"
    )
    (folder / "broken.py").write_text("import absent_module\n")
    (folder / "syntax.py").write_text("def f(:\n")
    for text in (name, f"bleu+{name}:0.5"):
        with pytest.raises(EsrlError, match=message):
            build_reward(text)


def test_functions_take_no_options(folder):
    with pytest.raises(EsrlError, match="takes no options, but was given tokenize"):
        build_reward("python:mod.f", tokenize="none")


@pytest.mark.parametrize(
    "body, message",
    [
        ("raise KeyError('boom')", "raised KeyError: 'boom' for sample 0 .*'a dog'"),
        ("return [float('nan')] * len(h)", "returned nan for sample 0 .*finite number"),
        ("return [2.0 if not t else 0.5 for t in h]", r"returned 2.0 for sample 2 .*\[0.0, 1.0\]"),
        ("return [0.5]", r"returned shape \(1,\) instead of \(3,\)"),
        ("return 0.5", r"returned shape \(\) instead of \(3,\)"),
        ("return ['good'] * len(h)", "raised ValueError.*for sample 0"),
        ("return None", "returned (nan|shape)"),
    ],
)
@pytest.mark.parametrize("name", ["python:mod.f", "bleu:0.5+python:mod.f:0.5"])
def test_functions_that_answer_badly(name, body, message, folder):
    """The message names the function, also where it is a part of a sum."""
    (folder / "mod.py").write_text(f"def f(s, h, r):\n    {body}\nf.range = (0, 1)\n")
    with pytest.raises(EsrlError, match=f"^reward 'python:mod.f' {message}"):
        ask(name)


def test_sums_beyond_float32(folder):
    (folder / "mod.py").write_text("def f(s, h, r): return [3e38] * len(h)\n")
    assert ask("python:mod.f").tolist() == [np.float32(3e38)] * 3
    with pytest.raises(EsrlError, match="'python:mod.f:9' returned inf"):
        ask("python:mod.f:9")


# --- in training ------------------------------------------------------------------------------


LOWER = "def rate(s, h, r): return [len(t) for t in h]\nrate.higher_is_better = False\n"


def test_what_should_fall_gets_a_negative_weight(folder):
    (folder / "mod.py").write_text(LOWER)
    assert not build_reward("python:mod.rate").higher_is_better
    assert ask("python:mod.rate:-1").tolist() == [-5, -12, 0]
    with pytest.raises(EsrlError, match="lower is better for 'python:mod.rate'.*not 0.5"):
        build_reward("bleu:0.5+python:mod.rate:0.5")
    with pytest.raises(EsrlError, match="lower is better.*--reward python:mod.rate:-1$"):
        make_criterion(make_task(), reward="python:mod.rate")
    make_criterion(make_task(), reward="python:mod.rate:-1")


@pytest.mark.parametrize("name", ["bleu", "bleu:0.5+chrf:0.5"])
def test_criterion_passes_its_options_to_bleu(name):
    criterion = make_criterion(
        make_task(), reward=name, reward_tokenize="none", reward_smoothing="floor"
    )
    signature = criterion.scorer.reward.signature()
    assert "tok:none|smooth:floor" in signature


@pytest.mark.parametrize("reward", ["chrf", "bleu:0.5+chrf:0.5", "repetition"])
def test_capability_is_sentence_bleu_whatever_the_reward_is(reward):
    """Where something follows it."""
    task = make_task(elimination_ratio=0.3)
    criterion = make_criterion(
        task, reward=reward, reward_tokenize="none", reward_smoothing="add-k"
    )
    capability = criterion.observer.measure.reward
    assert capability.name == "bleu" and "tok:none|smooth:add-k" in capability.signature()
    assert task.references_for == (
        "--capability bleu" if reward == "repetition" else f"--reward {reward}"
    )


def test_capability_reward_needs_the_unit_interval():
    """Where samples or temperatures follow it."""
    for name in ("ter", "bleu:0.5+chrf:0.5", "chrf:0.3", "bleu:0.7+ter:0.2+length:0.1"):
        make_criterion(make_task(capability="reward", elimination_ratio=0.3), reward=name)
    for name in ("bleu+length:0.1", "chrf:-1"):
        make_criterion(make_task(capability="reward"), reward=name)
        for following in ({"elimination_ratio": 0.3}, {"max_sample_temperature": 1.2}):
            task = make_task(capability="reward", **following)
            with pytest.raises(EsrlError, match="--capability reward needs a reward in .0, 1."):
                make_criterion(task, reward=name)


def test_reference_free_rewards_say_so_to_the_task():
    task = make_task()
    make_criterion(task, reward="repetition")
    assert not task.references_for
    make_criterion(task, reward="repetition+length")
    assert task.references_for == "--reward repetition+length"


def test_a_batch_is_scored_by_a_sum():
    criterion = make_criterion(make_task(), reward="bleu:0.5+chrf:0.5")
    batch = make_batch()
    scored = criterion.scorer.score(batch, batch["target"].tolist(), range(len(batch["id"])))
    np.testing.assert_allclose(scored.rewards, 1, atol=1e-6)


def test_switches_are_known_by_their_types():
    """A reward of a user's own may let an option be a word, too."""

    class Own:
        def __init__(
            self, a: bool = False, b: "bool | None" = None, c: Optional[bool] = None,
            d: "bool | str" = True, e: int = 1, f=False,
        ):  # fmt: skip
            pass

    assert [name for name in "abcdefg" if is_switch(Own, name)] == ["a", "b", "c"]
