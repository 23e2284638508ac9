"""Downloads and archives: what breaks, stands still, has changed, or wants out of its folder."""

import gzip
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from recipe_stand_ins import pack

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TEXT = bytes(range(256)) * 12000  # 3 MB


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves TEXT as the server's list of ways says, one a request, the last of them for ever."""

    def do_GET(self):
        ways, requests = self.server.ways, self.server.requests
        way = ways.pop(0) if len(ways) > 1 else ways[0]
        wanted = self.headers.get("Range")
        requests.append((way, wanted))
        if way == "missing":
            return self.send_error(404)
        start = int(wanted[6:-1]) if wanted and way != "deaf" else 0
        if start >= len(TEXT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(TEXT)}")
            return self.end_headers()
        data = b"another file" if way == "other" else TEXT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(TEXT) - 1}/{len(TEXT)}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if way in ("broken", "stalled", "drips"):
            data = data[: len(data) // 2]
        self.wfile.write(data)
        self.wfile.flush()
        end = time.monotonic() + 90
        while way in ("stalled", "drips") and not self.server.over.is_set():
            assert time.monotonic() < end
            time.sleep(0.1)
            if way == "drips":
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return None
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.over = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/text.bin"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """fetch.py for text.bin, in a folder with a blank in its name."""
    folder = tmp_path / "raw files"

    def run(*urls, sums=None, local=None, mirror=None):
        (tmp_path / "SUMS").write_text("" if sums is None else f"{sums}  text.bin\n")
        command = [sys.executable, str(RECIPES / "fetch.py"), "--sums", str(tmp_path / "SUMS")]
        command += ["--record", str(tmp_path / "record")]
        command += ["--local", str(local)] if local else []
        command += ["--mirror", mirror] if mirror else []
        return subprocess.run(
            [*command, "--", str(folder / "text.bin"), *urls],
            env={"ESRL_STALL_SECONDS": "1"},
            capture_output=True,
            text=True,
        )

    run.file = folder / "text.bin"
    return run


def refused(result, status=1):
    """Its one sentence."""
    assert result.returncode == status and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("way", ["broken", "stalled", "drips"])
def test_a_download_that_breaks_goes_on_where_it_was(way, server, fetch):
    server.ways = [way, "whole"]
    begun = time.monotonic()
    result = fetch(server.url)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - begun < 60  # it is not waited for
    assert fetch.file.read_bytes()[: len(TEXT) // 2] == TEXT[: len(TEXT) // 2]
    assert len(server.requests) == 2 and server.requests[1][1].startswith("bytes=1")
    if way != "drips":  # which writes something else
        assert fetch.file.read_bytes() == TEXT
    assert list(fetch.file.parent.iterdir()) == [fetch.file]


def test_a_server_that_cannot_go_on_sends_it_anew(server, fetch):
    server.ways = ["broken", "deaf"]
    assert fetch(server.url).returncode == 0
    assert fetch.file.read_bytes() == TEXT


def test_the_next_command_goes_on(server, fetch):
    """After an end in the middle; and where all but the last step was over."""
    server.ways = ["stalled"]
    assert "stands still" in refused(fetch(server.url)) or "timed out" in fetch(server.url).stderr
    (part,) = fetch.file.parent.iterdir()
    part.write_bytes(TEXT)  # whole, but not yet under its name
    server.ways = ["whole"]
    assert fetch(server.url).returncode == 0
    assert fetch.file.read_bytes() == TEXT


def test_what_stands_still_is_given_up_for_the_next_address(server, fetch):
    server.ways = ["stalled", "stalled", "stalled", "missing"]
    (fetch.file.parent).mkdir()
    other = fetch.file.parent / "other place"
    other.write_bytes(TEXT)
    result = fetch(server.url, other.as_uri())
    assert result.returncode == 0, result.stderr
    assert fetch.file.read_bytes() == TEXT


def test_no_address_has_it(server, fetch):
    server.ways = ["missing"]
    told = refused(fetch(server.url, "http://127.0.0.1:1/text.bin"))
    assert "404" in told and "refused" in told and "set ESRL_DATA_DIR" in told
    assert not fetch.file.exists()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_known_sum(algorithm, server, fetch):
    """A wrong file is dropped, and the next address is tried."""
    right = hashlib.new(algorithm, TEXT).hexdigest()
    server.ways = ["other", "whole"]
    assert "is not the file that this recipe was written for" in refused(
        fetch(server.url, sums=right)
    )
    assert list(fetch.file.parent.iterdir()) == []
    server.ways = ["other", "whole"]
    assert fetch(server.url, f"{server.url}?mirror", sums=right).returncode == 0
    assert fetch.file.read_bytes() == TEXT


def test_an_unknown_sum_is_that_of_the_first_time(server, fetch, tmp_path):
    server.ways = ["whole", "other"]
    assert fetch(server.url).returncode == 0
    assert (tmp_path / "record").read_text() == f"{hashlib.sha256(TEXT).hexdigest()}  text.bin\n"
    assert fetch(server.url).returncode == 0 and len(server.requests) == 1  # it is there
    fetch.file.unlink()
    told = refused(fetch(server.url))
    assert "has changed since this recipe first got it" in told and str(tmp_path) in told
    (tmp_path / "record").unlink()
    assert fetch(server.url).returncode == 0


def test_a_full_disk(server, fetch):
    server.ways = ["whole"]
    fetch.file.parent.mkdir()
    part = hashlib.sha256(server.url.encode()).hexdigest()[:8]
    (fetch.file.parent / f"text.bin.{part}.part").symlink_to("/dev/full")
    assert "No space left on device" in refused(fetch(server.url))


def test_a_local_copy(fetch, tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    assert "has no file text.bin" in refused(fetch("http://127.0.0.1:1/", local=folder))
    (folder / "text.bin").write_bytes(TEXT)
    assert fetch("http://127.0.0.1:1/", local=folder).returncode == 0
    assert fetch.file.read_bytes() == TEXT
    (folder / "text.bin.gz").write_bytes(gzip.compress(TEXT)[:-9])
    assert "cannot be unpacked" in refused(fetch("http://127.0.0.1:1/", local=folder))
    (folder / "text.bin.gz").write_bytes(gzip.compress(TEXT))
    assert fetch("http://127.0.0.1:1/", local=folder).returncode == 0
    assert not fetch.file.is_symlink() and fetch.file.read_bytes() == TEXT
    wrong = "0" * 64
    assert "is not the file" in refused(fetch("http://127.0.0.1:1/", local=folder, sums=wrong))
    assert (folder / "text.bin").read_bytes() == TEXT


def test_a_mirror_with_a_blank_in_its_address(fetch, tmp_path):
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / "text.bin").write_bytes(TEXT)
    assert fetch("http://127.0.0.1:1/", mirror=f"file://{folder}").returncode == 0
    assert fetch.file.read_bytes() == TEXT


def unpack(archive, folder, *patterns):
    command = [sys.executable, str(RECIPES / "unpack.py"), str(archive), str(folder), *patterns]
    return subprocess.run(command, capture_output=True, text=True)


def test_unpack_takes_what_is_asked_for(tmp_path):
    archive = pack(tmp_path / "a.tgz", {"in/one.de": "1\n", "in/one.en": "2\n", "other": "3\n"})
    result = unpack(archive, tmp_path / "out", "in/one.*")
    assert result.returncode == 0 and "2 files" in result.stdout
    found = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["one.de", "one.en"]
    assert "has no in/two" in refused(unpack(archive, tmp_path / "out", "in/two"), 3)


def hostile(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        hostile("in/../../evil", tarfile.REGTYPE),
        hostile("in/link", tarfile.SYMTYPE, "../../../etc"),
        hostile("in/link", tarfile.SYMTYPE, "/etc/passwd"),
        hostile("in/hard", tarfile.LNKTYPE, "../../evil"),
        hostile("in/device", tarfile.CHRTYPE),
        hostile("in/pipe", tarfile.FIFOTYPE),
    ],
    ids=["path", "link", "absolute", "hard", "device", "pipe"],
)
def test_no_path_leaves_the_folder(member, tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
        packed.addfile(member, io.BytesIO(b""))
    told = refused(unpack(tmp_path / "a.tgz", tmp_path / "a" / "out", "in/*"), 3)
    assert "is refused" in told
    assert not (tmp_path / "evil").exists() and not list((tmp_path / "a" / "out").rglob("*"))[1:]


@pytest.mark.parametrize("kept", [0, 20, -12])
def test_no_whole_archive(kept, tmp_path):
    archive = pack(tmp_path / "a.tgz", {"in/one": "text\n" * 20000})
    archive.write_bytes(archive.read_bytes()[:kept])
    assert "is no whole archive" in refused(unpack(archive, tmp_path / "out", "in/*"), 3)
