"""The project's pages as tests read them: code blocks, spans, headings, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("recipes", "benchmarks", "benchmarks/study")),
    ]
)
FENCE = re.compile(r"^( *)```(\w*)")
BULLET = re.compile(r"^( *)([-*]|\d+\.) +")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
SPAN = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)


def name_of(page):
    """Its path in the repository."""
    return str(page.relative_to(ROOT))


@dataclass
class Block:
    """Code of a page.

    Attributes:
        language: of a fence; empty where it says none, and for indented blocks.
        text: without fence and indentation.
        line: the number of its first line, from 1.
    """

    language: str
    text: str
    line: int


def parse(text):
    """A page's blocks, and its lines with nothing in the place of code."""
    found, prose = [], []
    fence, code, inside, before = None, None, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        goes_on = code is not None or not (before.strip() or BULLET.match(line))
        kept = ""
        if fence is not None:
            if line.strip() == "```":
                fence = code = None
            else:
                code.append(line.removeprefix(fence))
        elif begins := FENCE.match(line):
            fence, code = begins[1], []
            found.append((begins[2], code, number + 1))
        elif not line.strip():
            if code is not None:
                code.append("")
        elif goes_on and indent >= inside + 4:
            if code is None:
                code = []
                found.append(("", code, number))
            code.append(line[inside + 4 :])
        else:
            code, kept = None, line
            if bullet := BULLET.match(line):
                inside = len(bullet[0])
            elif not before.strip() and indent < inside:
                inside = 0
        prose.append(kept)
        before = line
    return [Block(kind, "\n".join(code).strip("\n"), at) for kind, code, at in found], prose


def read(page):
    """``(blocks, prose as one text)`` of a page."""
    blocks, prose = parse(page.read_text(encoding="utf-8"))
    return blocks, "\n".join(prose)


def spans(prose):
    """What stands between backticks, on one line each."""
    for double, single in SPAN.findall(prose):
        yield " ".join((double or single).split())


def links(prose):
    """Targets of links and pictures; code between backticks has none."""
    return LINK.findall(SPAN.sub("code", prose))


def headings(prose):
    """``(level, text)`` of each."""
    found = (re.match(r"^(#+) (.+)$", line) for line in prose.splitlines())
    return [(len(heading[1]), heading[2].strip()) for heading in found if heading]


def anchors(prose):
    """What links to the page can end in, by a forge's rule."""
    taken, found = {}, set()
    for _, text in headings(prose):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{slug}-{taken[slug]}" if slug in taken else slug)
        taken[slug] = taken.get(slug, 0) + 1
    return found
