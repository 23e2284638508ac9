"""The documents: no broken link, a README of one page, every page in the site and findable."""

import re
import runpy
from pathlib import Path

import pages
import pytest
import yaml
from pages import PAGES, ROOT, name_of

README_LINES = 120
CELL_WORDS = 40
OUTSIDE = {"index.md", "contributing.md", "changelog.md"}
OUTSIDE |= {"recipes.md", "benchmarks.md", "benchmarks-study.md"}
"""Pages of the site that lie elsewhere in the repository (scripts/site_pages.py)."""
DOCS = [page for page in PAGES if (ROOT / "docs") in page.parents]
SOURCES = [
    *(ROOT / "esrl_fairseq").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".py", ".sh", ".sbatch")),
    *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
    *(ROOT / name for name in ("setup.py", "Makefile", "pyproject.toml")),
]
OF_RESULTS = {"docs/results.md", "docs/study.md", "docs/reliability.md"}
"""Pages of measurements, whose cells may be long."""


def missing(page, link):
    """What is wrong with a link of a page; empty if nothing is."""
    path, _, anchor = link.partition("#")
    if "://" in link or link.startswith("mailto:"):
        return ""
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or ROOT not in (target, *target.parents):
        return f"{link}: there is no such file"
    if anchor and target.suffix == ".md" and anchor not in pages.anchors(pages.read(target)[1]):
        return f"{link}: {name_of(target)} has no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    _, prose = pages.read(page)
    assert not [wrong for link in pages.links(prose) if (wrong := missing(page, link))]


def test_links_are_tested(tmp_path, monkeypatch):
    """Files and headings that are not there are found, also within one page."""
    page = ROOT / "docs" / "faq.md"
    assert not missing(page, "rewards.md#gates") and not missing(page, "https://example.org/x")
    for link in ("reward.md", "rewards.md#gate", "#no-such-heading", "../../elsewhere.md"):
        assert missing(page, link)


def test_pages_that_the_code_names_are_there():
    """In messages, help texts and comments."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:docs|recipes|benchmarks)/[\w/-]+\.md", text):
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_pages_begin_with_one_title(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [text for level, text in pages.headings(pages.read(page)[1]) if level == 1]
    assert lines[0] == f"# {titles[0]}" and len(titles) == 1


@pytest.mark.parametrize("page", [p for p in PAGES if name_of(p) not in OF_RESULTS], ids=name_of)
def test_cells_are_short(page):
    for line in pages.read(page)[1].splitlines():
        if line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line):
                assert len(cell.split()) < CELL_WORDS, cell


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name_of)
def test_lists_are_lists_in_the_site_too(page):
    """Python-Markdown wants a blank line before a list, and four blanks before one within it."""
    before, in_list = "", False
    for line in pages.read(page)[1].splitlines():
        if bullet := pages.BULLET.match(line):
            assert len(bullet[1]) % 4 == 0, f"indent it by 4 blanks: {line}"
            assert in_list or not before.strip(), f"put a blank line before it: {line}"
            in_list = True
        elif not before.strip() and line.strip() and not line.startswith(" "):
            in_list = False
        before = line


def site():
    """mkdocs.yml, its Python names left out."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def leaves(nav):
    """The pages of a navigation."""
    for entry in nav:
        value = next(iter(entry.values()))
        yield from leaves(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    found = list(leaves(site()["nav"]))
    own = {str(page.relative_to(ROOT / "docs")) for page in DOCS}
    assert sorted(found) == sorted(own | OUTSIDE)


def test_the_site_takes_the_pages_from_outside(tmp_path):
    """Also those that lie elsewhere; no link of the site leads out of it, or nowhere."""
    code = runpy.run_path(str(ROOT / "scripts" / "site_pages.py"))
    assert set(code["OUTSIDE"].values()) == OUTSIDE
    assert {ROOT / name for name in code["OUTSIDE"]} == {page for page in PAGES if page not in DOCS}
    code["write"](tmp_path / "pages")
    for page in (tmp_path / "pages").rglob("*.md"):
        for link in pages.links(pages.read(page)[1]):
            path = link.partition("#")[0]
            target = (page.parent / path).resolve()
            assert "://" in link or not path or target.is_file(), f"{page}: {link}"
            assert "://" in link or tmp_path in target.parents, f"{page}: {link}"


def test_pictures_have_words_for_those_who_do_not_see_them():
    for page in PAGES:
        for text, link in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", pages.read(page)[1]):
            assert text.strip(), f"{name_of(page)}: {link}"
            assert Path(link).suffix in (".png", ".svg"), link
