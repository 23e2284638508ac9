"""IWSLT'14's RAW/unpacked/de-en → RAW/{train,test}.{de,en}, as fairseq's prepare-iwslt14.sh does.

Training text: lines of talks, their titles and descriptions; other tagged lines are about the talk.
Test set: the five sets below, one after the other, with ’ as '.
"""

import argparse
import importlib.util
from pathlib import Path

SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
ABOUT = ("url", "talkid", "keywords", "speaker", "reviewer", "translator", "doc", "transcript")
WITH_TEXT = ("title", "description")


def tagged():
    """recipes/tagged.py as a module."""
    path = Path(__file__).resolve().parents[1] / "tagged.py"
    spec = importlib.util.spec_from_file_location("tagged", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def training_lines(path: Path, tag_and_text) -> list[str]:
    found = []
    for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        tag, text = tag_and_text(line)
        if tag in WITH_TEXT:
            found.append(text)
        elif tag not in ABOUT:
            found.append(" ".join(line.split()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    args = parser.parse_args()
    reader, folder = tagged(), args.raw / "unpacked" / "de-en"
    counts: dict[str, set[int]] = {"train": set(), "test": set()}
    for lang in ("de", "en"):
        test: list[str] = []
        try:
            for name in SETS:
                file = folder / f"IWSLT14.{name}.de-en.{lang}.xml"
                test += [text.replace("’", "'") for text in reader.segments(file)]
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        train = training_lines(folder / f"train.tags.de-en.{lang}", reader.tag_and_text)
        for split, lines in (("train", train), ("test", test)):
            text = "".join(f"{line}\n" for line in lines)
            (args.raw / f"{split}.{lang}").write_text(text, encoding="utf-8")
            counts[split].add(len(lines))
    for split, found in counts.items():
        if len(found) != 1:
            raise SystemExit(f"error: the two languages of {split} have {sorted(found)} lines")
        print(f"> {split}: {found.pop()} pairs")


if __name__ == "__main__":
    main()
