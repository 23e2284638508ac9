"""Unpack files of an archive (.tgz, .tar …) that match patterns: ARCHIVE FOLDER PATTERN…

Nothing is written outside the folder, no link leads out of it, and no device is made: an archive
that wants to is refused (tarfile's filter `data`).
"""

import argparse
import fnmatch
import sys
import tarfile
import zlib
from pathlib import Path


def unpack(archive: Path, folder: Path, patterns: list[str]) -> int:
    """The number of files. Raises ValueError with a sentence."""
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("this Python's tarfile cannot unpack safely: 3.11.4 or later can")
    left, files = set(patterns), 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.removeprefix("./")
                matching = [one for one in patterns if fnmatch.fnmatchcase(name, one)]
                if matching and not member.isdir():
                    packed.extract(member, folder, filter="data")
                    left.difference_update(matching)
                    files += 1
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is refused: {error}") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} is no whole archive: {reason}") from None
    if left:
        raise ValueError(f"{archive} has no {' and no '.join(sorted(left))}")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="+", help="of names in the archive, * for any letters")
    args = parser.parse_args()
    try:
        files = unpack(args.archive, args.folder, args.patterns)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"> {args.archive.name}: {files} files")


if __name__ == "__main__":
    main()
