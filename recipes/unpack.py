"""Unpack files of an archive (.tgz, .tar …) that match patterns: ARCHIVE FOLDER PATTERN…

Only plain files are written, and none outside the folder: an archive that wants something else,
links and devices included, is refused. (tarfile's own filter `data` came with Python 3.11.4.) The
status is 3 where it is the archive's fault.
"""

import argparse
import fnmatch
import gzip
import shutil
import sys
import tarfile
import zlib
from pathlib import Path


def unpack(archive: Path, folder: Path, patterns: list[str]) -> int:
    """The number of files. Raises ValueError with a sentence."""
    left, files = set(patterns), 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.removeprefix("./")
                matching = [one for one in patterns if fnmatch.fnmatchcase(name, one)]
                if matching and not member.isdir():
                    write(packed, member, archive, target(archive, folder, name))
                    left.difference_update(matching)
                    files += 1
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} is no whole archive: {reason}") from None
    if left:
        raise ValueError(f"{archive} has no {' and no '.join(sorted(left))}")
    return files


def target(archive: Path, folder: Path, name: str) -> Path:
    """Where a file goes, whatever lies in the folder already."""
    inside, path = folder.resolve(), (folder / name).resolve()
    if path == inside or inside not in path.parents:
        raise ValueError(f"{archive} is refused: {name} would be written outside the folder")
    return path


def write(packed: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, path: Path) -> None:
    """Its content, with the permissions of a new file."""
    source = packed.extractfile(member) if member.isfile() else None
    if source is None:
        raise ValueError(f"{archive} is refused: {member.name} is no plain file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(source, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="+", help="of names in the archive, * for any letters")
    args = parser.parse_args()
    try:
        files = unpack(args.archive, args.folder, args.patterns)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, ValueError) else 1)
    print(f"> {args.archive.name}: {files} files")


if __name__ == "__main__":
    main()
