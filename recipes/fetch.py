"""Fetch one file: from a local folder, or from the first address that has it, whole and unchanged.

A download that broke off goes on where it was. One that stands still is given up (for the next
address), one that is slow is not. The file is checked against SHA256SUMS and MD5SUMS; where these
do not name it, its SHA-256 is written down the first time, and another one is refused later.
"""

import argparse
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 16
TRIES = 3  # of one address, without progress between them
PROGRESS = 1 << 20  # bytes after which a broken download counts as going on
LEAST_RATE = 1000  # bytes a second; what is slower stands still
SAY_EVERY = 10  # seconds


class FetchError(Exception):
    """Why a file could not be had, in one sentence."""


def digest(path: Path, algorithm: str) -> str:
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def read_sums(paths: Iterable[Path]) -> dict[str, str]:
    """{file's name: digest} of files as sha256sum and md5sum write them."""
    found = {}
    for path in paths:
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    sum_, name = line.split(maxsplit=1)
                    found[name.lstrip("*")] = sum_
    return found


class Sums:
    """What the file with a name has to be: by the recipe's lists, else as it was the first time."""

    def __init__(self, given: Iterable[Path], record: Path | None):
        self.given, self.record = read_sums(given), record

    def check(self, path: Path, name: str) -> None:
        """Raises FetchError; writes down what is not known yet."""
        known = self.given.get(name)
        if known:
            algorithm = "md5" if len(known) == 32 else "sha256"
            found = digest(path, algorithm)
            if found != known:
                raise FetchError(
                    f"{name} is not the file that this recipe was written for "
                    f"({algorithm} {found} instead of {known})"
                )
        elif self.record:
            found = digest(path, "sha256")
            first = read_sums([self.record]).get(name)
            if first and found != first:
                raise FetchError(
                    f"{name} has changed since this recipe first got it (sha256 {found}, then "
                    f"{first}); if that is right, delete its line in {self.record}"
                )
            if not first:
                self.record.parent.mkdir(parents=True, exist_ok=True)
                with self.record.open("a", encoding="utf-8") as file:
                    file.write(f"{found}  {name}\n")


class Progress:
    """Says how far a download is, and raises FetchError where it stands still."""

    def __init__(self, name: str, have: int, total: int | None, stall: float):
        self.name, self.total, self.stall = name, total, stall
        self.said = self.mark = (time.monotonic(), have)

    def at(self, size: int) -> None:
        now = time.monotonic()
        if now - self.said[0] >= SAY_EVERY:
            rate = (size - self.said[1]) / (now - self.said[0]) / 1e6
            whole = f" of {self.total / 1e6:.0f}" if self.total else ""
            print(f"> {self.name}: {size / 1e6:.0f}{whole} MB, {rate:.1f} MB/s", flush=True)
            self.said = (now, size)
        if now - self.mark[0] >= self.stall:
            if size - self.mark[1] < LEAST_RATE * self.stall:
                raise FetchError(f"stands still: less than {LEAST_RATE} bytes a second")
            self.mark = (now, size)


def start_of(response: http.client.HTTPResponse, have: int) -> int:
    """From which byte on a response has the file: a server may not heed what was asked for."""
    sent = response.headers.get("Content-Range", "")
    return have if have and sent.startswith(f"bytes {have}-") else 0


def download_once(url: str, part: Path, name: str, stall: float) -> None:
    """The rest of the file into ``part``. Raises OSError, HTTPException or FetchError."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "esrl_fairseq-recipes"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=stall)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it is whole already
        part.unlink()
        raise FetchError("what had been downloaded is not a part of it") from None
    with response:
        size = start_of(response, have)
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total and total - size > free:
            raise FetchError(
                f"{(total - size) / 1e6:.0f} MB are missing, and {free / 1e6:.0f} MB are free on "
                f"the disk of {part.parent} (No space left on device)"
            )
        progress = Progress(name, size, total, stall)
        with part.open("ab" if size else "wb") as file:
            while block := response.read1(BLOCK):
                file.write(block)
                size += len(block)
                progress.at(size)
    if total is not None and size != total:
        raise FetchError(f"broke off after {size} of {total} bytes")


def download(url: str, part: Path, name: str, stall: float) -> None:
    """Tries again, going on where it was, as long as each try brings something."""
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return download_once(url, part, name, stall)
        except (OSError, http.client.HTTPException, FetchError) as error:
            if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
                raise FetchError(f"{error.strerror} ({part.parent})") from None
            got = (part.stat().st_size if part.exists() else 0) - before
            tries = 0 if got >= PROGRESS else tries + 1
            final = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if tries >= TRIES or final:
                reason = str(error) or type(error).__name__
                raise FetchError(reason.replace("<urlopen error ", "").rstrip(">")) from None
            print(f"> {name}: {error}; once more", flush=True)
            time.sleep(min(2**tries, stall))


def from_folder(folder: Path, file: Path, sums: Sums) -> None:
    """A link to the local copy; the unpacked text of a packed one."""
    packed, plain = folder / f"{file.name}.gz", folder / file.name
    file.unlink(missing_ok=True)
    if packed.exists():
        part = file.with_name(f"{file.name}.part")
        try:
            with gzip.open(packed) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (EOFError, gzip.BadGzipFile) as error:
            raise FetchError(f"{packed} cannot be unpacked: {error}") from None
        sums.check(part, file.name)
        part.replace(file)
    elif plain.exists():
        sums.check(plain, file.name)
        file.symlink_to(plain.absolute())
    else:
        raise FetchError(f"ESRL_DATA_DIR={folder} has no file {file.name}")


def from_addresses(urls: list[str], file: Path, sums: Sums, stall: float) -> None:
    failures = []
    for url in urls:
        # A part belongs to its address: another one's file may differ.
        part = file.with_name(f"{file.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
        try:
            download(url, part, file.name, stall)
            try:
                sums.check(part, file.name)
            except FetchError:
                part.unlink()
                raise
        except FetchError as error:
            failures.append(f"{url}: {error}")
            continue
        part.replace(file)
        return
    raise FetchError(
        f"could not download {file.name} ({'; '.join(failures)}); the same command tries again, or "
        "get it by hand into a folder and set ESRL_DATA_DIR to that (recipes/README.md)"
    )


def kept(file: Path, sums: Sums) -> bool:
    """Whether the file is there already, from a step that was interrupted."""
    if not file.exists() or file.is_symlink():
        return False
    known = sums.given.keys() | (read_sums([sums.record]).keys() if sums.record else set())
    if file.name not in known:
        return False
    try:
        sums.check(file, file.name)
    except FetchError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--local", type=Path, help="folder that has the file, perhaps as FILE.gz")
    parser.add_argument("--mirror", help="address of a folder to take it from, and only from there")
    parser.add_argument("--sums", type=Path, nargs="*", default=[], help="SHA256SUMS, MD5SUMS")
    parser.add_argument("--record", type=Path, help="sums of files that these do not name")
    args = parser.parse_args()
    stall = float(os.environ.get("ESRL_STALL_SECONDS", "60"))
    sums = Sums(args.sums, args.record)
    urls = [f"{args.mirror.rstrip('/')}/{args.file.name}"] if args.mirror else args.urls
    try:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        if args.local:
            from_folder(args.local, args.file, sums)
        elif not kept(args.file, sums):
            from_addresses(urls, args.file, sums, stall)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"> {args.file.name}: {args.file.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
