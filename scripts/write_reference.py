"""Writes docs/reference/options.md from the parsers of the commands themselves.

python scripts/write_reference.py            # after a change of options or of their help
python scripts/write_reference.py --check    # ends with an error if the page is another one
"""

import argparse
import contextlib
import importlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "reference" / "options.md"
HEAD = """# Options: all of them, with defaults

`python -m esrl_fairseq` prints those of `fairseq-train`, whose own `--help` ends before it comes to
them. All other options of fairseq work as ever. This page is made from the code by
`python scripts/write_reference.py`.
"""
UNSAID = ("None", "False", "[]", "", argparse.SUPPRESS)
"""Defaults that mean: nothing."""
HIDDEN = (argparse._HelpAction, argparse._SubParsersAction)


class Found(Exception):
    """A parser that was about to read the command line."""


def asked_for_help(module: ModuleType) -> argparse.ArgumentParser | str:
    """The parser of a command, caught when it is used; its help where it has none."""

    def caught(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Found(parser)

    shown = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", caught),
        mock.patch.object(sys, "argv", [module.__name__, "--help"]),
        contextlib.redirect_stdout(shown),
    ):
        try:
            module.main()
        except Found as found:
            return found.args[0]
    return shown.getvalue()


def sections() -> list[tuple[str, argparse._ArgumentGroup | argparse.ArgumentParser | str]]:
    """What has options, by its heading: groups of ``fairseq-train``, then our own commands."""
    options = importlib.import_module("esrl_fairseq.__main__")
    found: list = [(group.title, group) for group in options.make_parser()._action_groups]
    for path in sorted((ROOT / "esrl_fairseq").glob("*/__main__.py")):
        name = f"esrl_fairseq.{path.parent.name}"
        parser = asked_for_help(importlib.import_module(f"{name}.__main__"))
        if isinstance(parser, str):
            found.append((f"python -m {name}", parser))
            continue
        commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found += [(sub.prog, sub) for action in commands for sub in action.choices.values()]
        if not commands:
            found.append((parser.prog, parser))
    return [(title, group) for title, group in found if isinstance(group, str) or actions(group)]


def actions(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> list[argparse.Action]:
    """Those that the page has."""
    parsed = group._actions if isinstance(group, argparse.ArgumentParser) else group._group_actions
    return [a for a in parsed if not isinstance(a, HIDDEN) and a.help is not argparse.SUPPRESS]


def plain(text: str) -> str:
    """A help text as Markdown: its options as code, and nothing that Markdown would read."""
    text = re.sub(r"([*<\[])", r"\\\1", " ".join(text.replace("%%", "%").split()))
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)


def entry(action: argparse.Action, prog: str) -> str:
    """A line of the page."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    names = names or f"`{action.metavar or action.dest}`"
    default = action.default
    said = (
        "" if str(default) in ("None", "False", "[]", "", argparse.SUPPRESS) else f" (`{default}`)"
    )
    text = (action.help or "").replace("%(default)s", str(default)).replace("%(prog)s", prog)
    choices = [str(choice) for choice in action.choices or []]
    if choices and not all(choice in text for choice in choices):
        text += f"{': ' if text else ''}one of {', '.join(choices)}"
    return f"- {names}{said}: {plain(text)}" if text else f"- {names}{said}"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, group in sections():
        if isinstance(group, str):
            parts.append(f"## {title}\n\n```text\n{group.rstrip()}\n```")
            continue
        prog = group.prog if isinstance(group, argparse.ArgumentParser) else "fairseq-train"
        name, *more = title.removesuffix("; and").split(", ", 1)
        lines = "\n".join(entry(action, prog) for action in actions(group))
        parts.append("\n".join([f"## {name}", *[f"\n{plain(text)}." for text in more], "", lines]))
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE.name} is not what the code says: python scripts/write_reference.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
