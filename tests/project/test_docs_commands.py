"""Every command of the documents is known: its program, its options and their values.

Nothing is run: each is parsed by the very parser of its program. So an option that is renamed, a
script that is moved and an extra that is dropped fail here.

Code blocks without a language, and those that say ``sh``, are commands; so are spans of text that
begin with a program. ``…`` stands for what is left out.
"""

import argparse
import contextlib
import importlib
import io
import logging
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pages
import pytest
import setuptools
import yaml
from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.models.transformer import TransformerConfig
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from pages import PAGES, ROOT, name_of

import esrl_fairseq  # noqa: F401 (registers tasks and models)


@pytest.fixture(autouse=True)
def same_log():
    """What the parsers' programs set in the log of this process is taken back."""
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in loggers]
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    yield
    for logger, *kept in before:
        logger.level, logger.disabled, logger.propagate = kept
        logger.manager._clear_cache()
    logging.disable(disabled)
    logging.root.handlers[:] = handlers


OF_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]
COMMANDS = {"", "sh", "bash", "console"}
"""Languages of blocks that hold commands."""
UNIX = set(
    "bash cat cd cp cut curl echo export git grep head ls mkdir mv printf rm sed sort source tail "
    "tar wc which xdg-open".split()
)
OTHERS = {
    **dict.fromkeys(("spm_train", "spm_encode", "subword-nmt", "sacremoses", "sacrebleu"), None),
    **dict.fromkeys(("ct2-fairseq-converter", "comet-score", "pytest", "mkdocs", "venv"), None),
}
"""Programs of other packages, whose options are not ours to check."""
DOCTOR = "esrl_fairseq.doctor"
LAUNCHERS = ("torchrun", "srun", "mpirun", "sbatch")
PARSERS = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
    "fairseq-preprocess": options.get_preprocessing_parser,
    "fairseq-eval-lm": options.get_eval_lm_parser,
    "fairseq-validate": options.get_validation_parser,
}
SIMPLE = ("fairseq-preprocess",)
"""Commands whose words are parsed at once."""
FOREIGN = set(
    # torchrun, srun, pip, CTranslate2's converter, transformers, sacreBLEU, pytest, fairseq of 2018
    "--nproc-per-node --nnodes --node-rank --master-addr --master-port --ntasks-per-node "
    "--gpus-per-node --nodes --index-url --no-deps --extra-index-url --user_dir --quantization "
    "--hypothesis-profile --input --model --seq-beam --seq-scorer --seq-max-len-a --seq-max-len-b "
    "--seq-combined-loss-alpha --seq-keep-reference --seq-hypos-dropout --parallel --system-site "
    "--eval-bleu --no-build-isolation --signal".split()
)
"""Options in running text that belong to other programs."""
NOT_WHOLE = "arguments are required|expected (one|at least one) argument"
"""What parsers say of a command that is only mentioned."""
SHORTHAND = {"C"}
"""Of a page that says what it stands for."""


class Parsed(Exception):
    """A program's parser took its words."""


def setup_of_project():
    """What setup.py says."""
    with mock.patch.object(setuptools, "setup") as called, contextlib.chdir(ROOT):
        runpy.run_path(str(ROOT / "setup.py"))
    return called.call_args.kwargs


SETUP = setup_of_project()
SCRIPTS = dict(
    re.fullmatch(r"([\w-]+) *= *(\S+)", line).groups()
    for line in SETUP["entry_points"]["console_scripts"]
)


# --- from a page to commands --------------------------------------------------------------------


@dataclass
class Shell:
    """What a page's earlier blocks have defined: arrays and functions."""

    arrays: dict = field(default_factory=dict)
    functions: set = field(default_factory=set)


def simple_commands(text, shell=None):
    """``(words, variables)`` of each command in some lines of a shell."""
    shell = shell or Shell()
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"<<'?(\w+)'?(.*?)\n.*?^\1$", r"\2", text, flags=re.M | re.S)  # what is typed in
    for name, words in re.findall(r"^(\w+)=\(([^()]*(?:'[^']*'[^()]*)*)\)$", text, re.M):
        shell.arrays[name] = " ".join(words.split())
    text = re.sub(r"^\w+=\([^()]*(?:'[^']*'[^()]*)*\)$", "", text, flags=re.M)
    for name, words in shell.arrays.items():
        text = text.replace(f'"${{{name}[@]}}"', words)
    shell.functions |= set(re.findall(r"^(\w+)\(\)", text, re.M))
    text = re.sub(r"^\w+\(\) *\{ *(.*?);? *\}$", r"\1", text, flags=re.M)
    text = re.sub(r"\$\(which ([\w-]+)\)", r"\1", text)
    text = re.sub(r"\bfor \w+ in [^;\n]*[;\n]\s*do\b", "", text)
    for line in text.splitlines():
        words = []
        for token in [*tokens(line), ";"]:
            if set(token) <= set(";|&()"):
                command = without_variables(words)
                if command and command[0][0] not in shell.functions:
                    yield command
                words = []
            else:
                words.append(token)


def tokens(line):
    """Words and operators of a line up to a comment, without redirections."""
    lexer, skip = shlex.shlex(line, posix=True, punctuation_chars=True), False
    lexer.whitespace_split, lexer.commenters = True, ""
    for token in lexer:
        if token.startswith("#"):
            return
        if set(token) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            yield token


def without_variables(words):
    """``(words, {variable: value})``; None where nothing is left."""
    variables = {}
    words = [word for word in words if word not in ("do", "done", "then", "fi")]
    while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    return (words, variables) if words else None


def known_program(word):
    """Whether it is one of those that this file knows how to check."""
    return (
        word in (*PARSERS, *UNIX, *OTHERS, *LAUNCHERS, *SCRIPTS)
        or word in ("python", "python3", "pip", "make", "fairseq-hydra-train", ".")
        or re.fullmatch(r"(recipes|benchmarks|scripts)/[\w./-]+", word) is not None
    )


def commands_of(page):
    """``(place, words, variables)`` of all of them; a place in running text ends in a backtick."""
    blocks, prose = pages.read(page)
    shell = Shell()
    for block in blocks:
        if block.language in COMMANDS:
            for words, variables in simple_commands(block.text, shell):
                yield f"{name_of(page)}:{block.line}", words, variables
    for span in pages.spans(prose):
        if " " in span and known_program(span.split()[0]) and span.split()[0] not in UNIX:
            for words, variables in simple_commands(span):
                yield f"{name_of(page)}, `{span[:60]}`", words, variables


# --- checks by program --------------------------------------------------------------------------


def check(words, variables):
    """Refuse a command that its program would refuse.

    Raises:
        AssertionError: what is wrong.
    """
    program, rest = words[0], [word for word in words[1:] if word not in SHORTHAND]
    assert known_program(program), f"{program} is no program that is known"
    if program not in (*PARSERS, *LAUNCHERS):
        rest = [word for word in rest if word != "…"]
    if program == "esrl-doctor" or rest[:2] == ["-m", DOCTOR]:
        check_doctor([word for word in words[1:] if word not in ("-m", DOCTOR)])
    elif program in LAUNCHERS:
        starts = [i for i, w in enumerate(rest) if w in PARSERS or w.startswith("recipes/")]
        if starts:
            check(rest[starts[0] :], variables)
    elif program in PARSERS:
        check_fairseq(program, rest)
    elif program == "fairseq-hydra-train":
        assert {w for w in rest if w.startswith("--")} <= {"--config-dir", "--config-name"}
    elif program in ("python", "python3"):
        check_python(rest)
    elif program in SCRIPTS:
        module, _, function = SCRIPTS[program].partition(":")
        parse(lambda: getattr(importlib.import_module(module), function)(), [program, *rest])
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    elif program.startswith(("recipes/", "benchmarks/", "scripts/")):
        check_script(program, rest, variables)


def check_fairseq(program, words):
    """By fairseq's parser, with the options of task, criterion, architecture and so on."""
    if program == "fairseq-train" and "…" in words and "--criterion" not in words:
        words = [*words, "--criterion", "esrl"]
        words += [] if "--task" in words else ["--task", "esrl_translation"]
    words = [word for word in words if word != "…"]
    if "--user-dir" in words:
        place = words.index("--user-dir")
        folder = words[place + 1]
        assert folder.rpartition("/")[2] == "esrl_fairseq" or folder.startswith("$"), folder
        del words[place : place + 2]
    parser = PARSERS[program]()
    if program == "fairseq-train" and "--arch" not in words:
        models = "language_modeling" in " ".join(words)
        words = [*words, "--arch", "transformer_lm" if models else "transformer"]
    if program in ("fairseq-generate", "fairseq-interactive", "fairseq-eval-lm"):
        words = [*words, *(["--path", "x"] if "--path" not in words else [])]
    if program != "fairseq-preprocess" and (not words or words[0].startswith("--")):
        words = ["data-bin", *words]
    if program in SIMPLE:
        parse(lambda: parser.parse_args(words), [program])
    else:
        parse(lambda: options.parse_args_and_arch(parser, words), [program], at_once=False)


def check_doctor(words):
    """It takes a command of fairseq-train, or data and a start model with its options."""
    if words and not words[0].startswith("--"):
        start = [] if words[0] == "fairseq-train" else ["--criterion", "esrl"]
        if start and len(words) > 1 and words[1] != "…" and not words[1].startswith("--"):
            start += ["--finetune-from-model", words.pop(1)]
        if start and "--task" not in words:
            start += ["--task", "esrl_translation"]
        check_fairseq("fairseq-train", [*words[0 if start else 1 :], *start])


def parse(run, words, at_once=True):
    """Run something up to where its parser has taken ``words``."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        self.allow_abbrev = False
        found = real(self, args, namespace)
        if at_once:
            raise Parsed
        return found

    shown = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(sys, "argv", [str(word) for word in words]),
        contextlib.redirect_stderr(shown),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(Parsed),
    ):
        try:
            run()
        except SystemExit as end:
            if not end.code or lacks_an_extra(end.code):  # --help
                return
            raise AssertionError(shown.getvalue().strip().splitlines()[-1]) from None
        except ModuleNotFoundError as error:
            if not lacks_an_extra(str(error)):
                raise
            return
        assert not at_once, "it parses nothing"


def lacks_an_extra(said):
    """Whether a program could not be asked, because a package of an extra is not installed."""
    return bool(re.match("No module named '(transformers|playwright|ctranslate2|trl)'", str(said)))


def check_python(words):
    """``-m`` of a module of ours, or a script of the repository."""
    if words[0] == "-m":
        if words[1].split(".")[0] in OTHERS:
            return
        assert words[1].split(".")[0] == "esrl_fairseq", words[1]
        module = importlib.import_module(f"{words[1]}.__main__")
        if words[1] == "esrl_fairseq":  # prints
            parse(lambda: module.main(words[2:]), words[1:], at_once=False)
        else:
            parse(module.main, words[1:])
    elif words[0] not in ("-c", "-"):
        script = ROOT / words[0]
        assert script.is_file(), f"there is no {words[0]}"
        with mock.patch.object(sys, "path", [str(script.parent), *sys.path]):
            parse(lambda: runpy.run_path(str(script), run_name="__main__"), [script, *words[1:]])


def check_make(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.M)).split())
    for word in words:
        name, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"^{name} *\?=", makefile, re.M), f"make has no variable {name}"
        else:
            assert word in targets, f"make has no target {word}"


def check_pip(words):
    """Extras of this project that are to be installed."""
    assert words[0] in ("install", "uninstall", "wheel", "download"), words[0]
    for word in words:
        own = re.match(r"^(?:\.|esrl[-_]fairseq\S*?)\[([\w,-]+)\]", word)
        assert not own or set(own[1].split(",")) <= SETUP["extras_require"].keys(), word


def check_script(program, words, variables):
    """A script of the shell that is there, can be started, and has these words and variables."""
    path = ROOT / program
    assert path.is_file(), f"there is no {program}"
    text = "".join(file.read_text(encoding="utf-8") for file in sources_of(path))
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){word.partition('=')[0]}\b", text), f"{program} {word}"
    for name in variables:
        assert re.search(rf"\b{name}\b", text), f"{program} knows no {name}"


def sources_of(path):
    """A script, and what it is made of."""
    shared = [ROOT / "recipes" / name for name in ("lib.sh", "steps.sh", "README.md")]
    beside = [p for p in path.parent.rglob("*") if p.suffix in (".sh", ".py")]
    return [path, *beside, *(shared if "recipes" in path.parts else [])]


@pytest.mark.parametrize("page", OF_TODAY, ids=name_of)
def test_commands_are_known(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some parsers look at the folder
    wrong = []
    for place, words, variables in commands_of(page):
        try:
            check(words, variables)
        except AssertionError as error:
            is_mention = place.endswith("`") and re.search(NOT_WHOLE, str(error))
            if not is_mention:
                wrong.append(f"{place}: {shlex.join(words)[:200]}\n    {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    [
        "fairseq-train data-bin --user-dir esrl_fairseq --criterion esrl --number-of-samples 8",
        "fairseq-train data-bin --task esrl_translation --criterion esrl --objective best",
        "fairseq-train data-bin --task esrl --criterion esrl",
        "fairseq-trian data-bin",
        "torchrun --nproc-per-node 4 $(which fairseq-train) data-bin --criterion esrll",
        "fairseq-generate data-bin --beams 5",
        "fairseq-preprocess --joint-dictionary",
        "python -m esrl_fairseq.rewards --rewards bleu x",
        "python -m esrl_fairseq.huggingface import --checkpoint x",
        "python -m esrl_fairseq.nothing",
        "python benchmarks/nothing.py",
        "python benchmarks/memory.py --parameters small",
        "esrl-report esrl --evaluated",
        "make nothing",
        "make env VENVS=x",
        "pip install -e '.[nothing]'",
        "recipes/nothing/run.sh",
        "recipes/demo/run.sh --dryrun",
        "NOTHING=1 recipes/demo/run.sh",
        "benchmarks/gpu.sh --fast",
    ],
)
def test_commands_that_are_wrong_are_found(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        for words, variables in simple_commands(command):
            check(words, variables)


def test_the_config_file_has_known_names():
    """docs/howto/config-files.md: sections and options, as Hydra reads them."""
    blocks, _ = pages.read(ROOT / "docs" / "howto" / "config-files.md")
    (text,) = [block.text for block in blocks if block.language == "yaml"]
    kinds = {name: field.type for name, field in FairseqConfig.__dataclass_fields__.items()}
    for section, values in yaml.safe_load(text).items():
        if not isinstance(values, dict):
            assert values in REGISTRIES[section]["registry"]
            continue
        name = values.pop("_name", None)
        kind = kinds[section]
        if section == "model":
            assert name == "transformer"
            kind = TransformerConfig
        elif section == "task":
            kind = TASK_DATACLASS_REGISTRY[name]
        elif name is not None:
            kind = REGISTRIES[section]["dataclass_registry"][name]
        assert values.keys() <= kind.__dataclass_fields__.keys(), section


# --- options in running text --------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_option():
    """Options of fairseq's commands and of everything in this repository."""
    found = set(FOREIGN)
    for make in PARSERS.values():
        found |= set(make()._option_string_actions)
    fairseq = Path(importlib.import_module("fairseq").__file__).parent
    folders = [fairseq / name for name in ("models", "tasks", "optim", "criterions", "data")]
    ours = [ROOT / name for name in ("esrl_fairseq", "benchmarks", "recipes", "scripts")]
    for folder in [*folders, *ours]:
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".sh"):
                text = path.read_text(encoding="utf-8")
                found |= set(re.findall(r"""['"(](--[a-z][\w-]*)['",)|]""", text))
                if path.suffix == ".sh":
                    found |= set(re.findall(r"(--[a-z][\w-]*)", text))
    for parser in parsers_of_fields():
        found |= set(parser._option_string_actions)
    return found


def parsers_of_fields():
    """Of all registered tasks, criteria, models, optimizers and so on that have option fields."""
    kinds = list(TASK_DATACLASS_REGISTRY.values())
    for registry in REGISTRIES.values():
        kinds += registry["dataclass_registry"].values()
    for kind in kinds:
        parser = argparse.ArgumentParser(conflict_handler="resolve")
        gen_parser_from_dataclass(parser, kind() if isinstance(kind, type) else kind)
        yield parser
    for model in MODEL_REGISTRY.values():
        parser = argparse.ArgumentParser(conflict_handler="resolve")
        model.add_args(parser)
        yield parser
    yield importlib.import_module("esrl_fairseq.__main__").make_parser()


@pytest.mark.parametrize("page", OF_TODAY, ids=name_of)
def test_options_in_running_text_are_known(page, every_option):
    """What is called `--so` is an option of something."""
    words = {word for span in pages.spans(pages.read(page)[1]) for word in span.split()}
    named = {match[1] for word in words if (match := re.match(r"^(--[a-z][\w-]*)", word))}
    assert not {name for name in named if name not in every_option and not name.endswith("-")}
