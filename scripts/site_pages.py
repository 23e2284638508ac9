"""Puts the site's pages into one folder, for the generator: ``site_pages.py FOLDER``.

On a forge README.md and the other folders' README files are pages like those in docs/. In the site
they lie beside them, and links between all of them are turned round. Links to files that are no
pages (code, scripts) become plain text: the site does not know where the repository is.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/study/README.md": "benchmarks-study.md",
}
"""Files of the repository, and what they are called in the site."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def name_in_site(path: str) -> str | None:
    """Of a file of the repository; None if it is not in the site."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def turned(markdown: str, path: str) -> str:
    """A page with links as they are in the site.

    Args:
        markdown: the page.
        path: of its file in the repository.
    """
    name = name_in_site(path) or path

    def turn(found: re.Match[str]) -> str:
        image, text, link = found.groups()
        file, hash_sign, anchor = link.partition("#")
        if not file or "://" in link:
            return found[0]
        target = name_in_site(posixpath.normpath(posixpath.join(posixpath.dirname(path), file)))
        if target is None:
            return text
        new = posixpath.relpath(target, posixpath.dirname(name) or ".")
        return f"{image}[{text}]({new}{hash_sign}{anchor})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):  # whose text is not Markdown
        parts += [LINK.sub(turn, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(turn, markdown[end:])])


def write(folder: Path) -> None:
    """Write all pages and pictures into ``folder``, whatever it held."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]
    for path in [*pages, *OUTSIDE]:
        text = (ROOT / path).read_text(encoding="utf-8")
        (folder / str(name_in_site(path))).write_text(turned(text, path), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="is written anew")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
