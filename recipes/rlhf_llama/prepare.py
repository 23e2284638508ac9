"""Instructions of Alpaca as prompts, one a line: RAW/alpaca_data.json → CLEAN/{train,valid,test}.

An instruction's input follows it. Equal prompts are kept once, in random order with a fixed seed.
"""

import argparse
import json
import random
import sys
from pathlib import Path

SIZES = {"test": 1000, "valid": 200}
MOST_WORDS = 200


def prompts(rows: list[dict[str, str]]) -> list[str]:
    """Distinct prompts without line breaks, long ones left out."""
    texts = (f"{row['instruction']} {row['input']}".split() for row in rows)
    found = sorted({" ".join(words) for words in texts if 0 < len(words) <= MOST_WORDS})
    random.Random(1).shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("clean", type=Path)
    arguments = parser.parse_args()
    file = arguments.raw / "alpaca_data.json"
    try:
        rest = prompts(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {file} is no whole list of instructions: {error}", file=sys.stderr)
        sys.exit(3)
    arguments.clean.mkdir(parents=True, exist_ok=True)
    for split, size in {**SIZES, "train": len(rest)}.items():
        part, rest = rest[:size], rest[size:]
        text = "".join(line + "\n" for line in part)
        (arguments.clean / split).write_text(text, encoding="utf-8")
        print(f"> {split}: {len(part)} prompts")


if __name__ == "__main__":
    main()
