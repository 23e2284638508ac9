"""Read the tagged text of evaluation campaigns with a parser: test sets, and training text.

It is SGML or XML that is not always well formed: names in either case, attributes without quotes, a
bare &, segments over several lines. Python's html.parser takes all of that.
"""

from html.parser import HTMLParser
from pathlib import Path


class Segments(HTMLParser):
    """Collects the text of all <seg>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "seg":
            if self.inside:
                raise ValueError(f"segment {len(self.found)} does not end before the next begins")
            self.found.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "seg":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def segments(path: Path) -> list[str]:
    """The segments of a test set, one line each. Raises ValueError if it is cut off or has none."""
    parser = Segments()
    try:
        parser.feed(path.read_text(encoding="utf-8"))
        parser.close()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if parser.inside or not parser.found:
        raise ValueError(f"{path} has no segments, or ends in the middle of one")
    return [" ".join(text.split()) for text in parser.found]


class Line(HTMLParser):
    """The first tag of a line, and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.tag, self.text = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = self.tag or tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_entityref(self, name: str) -> None:
        self.text += f"&{name};"

    def handle_charref(self, name: str) -> None:
        self.text += f"&#{name};"


def tag_and_text(line: str) -> tuple[str, str]:
    """Of a line of training text: ("title", text) of <title>text</title>; no tag: ("", line)."""
    if not line.lstrip().startswith("<"):
        return "", line.strip()
    parser = Line()
    parser.feed(line.strip())
    parser.close()
    return parser.tag, " ".join(parser.text.split())
