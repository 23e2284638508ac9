"""Judged translations as data for a reward model: RAW/mlqe-*.jsonl → CLEAN/{train,valid,test}.*

Every machine translation is a line with its rating (z-score of direct assessment). A post-edit that
differs from it is a line without a rating, which is preferred to the machine translation.
"""

import argparse
import json
from pathlib import Path

SPLITS = {"train": "train", "valid": "dev", "test": "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("clean", type=Path)
    args = parser.parse_args()
    args.clean.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        written: dict[str, list[str]] = {"en": [], "de": [], "ratings": [], "preferences": []}
        for line in (args.raw / f"mlqe-{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            judged = [(row["mt"], str(row["da_z"]))]
            if row["pe"] != row["mt"]:
                judged.append((row["pe"], "nan"))
                machine = len(written["en"]) + 1
                written["preferences"].append(f"{machine + 1} {machine}")
            for output, rating in judged:
                written["en"].append(row["src"])
                written["de"].append(output)
                written["ratings"].append(rating)
        for ending, lines in written.items():
            text = "".join(line + "\n" for line in lines)
            (args.clean / f"{split}.{ending}").write_text(text, encoding="utf-8")
        print(f"> {split}: {len(written['en'])} lines, {len(written['preferences'])} preferences")


if __name__ == "__main__":
    main()
