"""What `make docs` does beside mkdocs: pages that lie outside docs/, and links to them.

On a forge README.md and the other folders' README files are pages like those in docs/. Here they
become pages of the site, and links between all of them are turned round. Links to files that are no
pages (code, scripts) become plain text: the site does not know where the repository is.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

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


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a page's links into those of the site."""
    name = page.file.src_uri
    source = {new: old for old, new in OUTSIDE.items()}.get(name, f"docs/{name}")

    def turned(found: re.Match[str]) -> str:
        image, text, link = found.groups()
        path, hash_sign, anchor = link.partition("#")
        if not path or "://" in link:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target in OUTSIDE:
            target = OUTSIDE[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return text
        new = posixpath.relpath(target, posixpath.dirname(name) or ".")
        return f"{image}[{text}]({new}{hash_sign}{anchor})"

    return LINK.sub(turned, markdown)
