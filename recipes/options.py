"""Say which step of a plan (standard input) has options that fairseq does not take: USER_DIR

Then the status is 3. Options are parsed alone: whether values make sense together is not seen.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator

PROGRAM = "fairseq-train"
NOT_KNOWN_YET = {"ESRL_HOURS": "1"}
"""What a plan cannot say before ESRL has trained, and a value that is parsed in its place."""


def commands(plan: str) -> Iterator[tuple[str, list[str]]]:
    """(step, words) of each line that the plan would call."""
    step = ""
    for line in plan.replace("\\\n", " ").split("\n"):
        if match := re.match(r" ?\d+\. (\S+)", line):
            step = match[1]
        elif line.startswith("    $ "):
            yield step, [NOT_KNOWN_YET.get(word, word) for word in shlex.split(line[6:])]


def parse(words: list[str], user_dir: str) -> None:
    """Raises ValueError, with argparse's sentence, for what is no option of the program called."""
    if PROGRAM not in words and words[0] != "generate":
        return  # a function of the recipe
    from fairseq import options  # takes seconds

    if PROGRAM in words:
        words, parser = words[words.index(PROGRAM) + 1 :], options.get_training_parser
    else:  # lib.sh's: generate RUN OPTION…
        words = ["data-bin", "--user-dir", user_dir, "--path", words[1], *words[2:]]
        parser = options.get_generation_parser
    sys.argv = [PROGRAM, *words]  # fairseq looks there for --user-dir
    options.parse_args_and_arch(parser(), words)


def leave(_: argparse.ArgumentParser, status: int = 0, message: str | None = None) -> None:
    """In the place of parsers' exit, which they call to end with a message."""
    raise ValueError((message or "").strip().removeprefix(f"{PROGRAM}: error: "))


def main() -> None:
    user_dir = sys.argv[1]
    argparse.ArgumentParser.exit = leave  # type: ignore[method-assign,assignment]
    argparse.ArgumentParser.print_usage = lambda *_: None  # type: ignore[method-assign]
    for step, words in commands(sys.stdin.read()):
        try:
            parse(words, user_dir)
        except ValueError as error:
            print(f"step {step} would not take its options: {error}")
            sys.exit(3)


if __name__ == "__main__":
    main()
