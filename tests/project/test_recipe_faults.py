"""What can go wrong around each of the large recipes; addresses and folders have blanks in them.

What is a recipe's own is tried with every recipe: what it fetches, and how it prepares that. All
share trainings and what follows.
"""

import fcntl
import functools
import http.server
import os
import re
import threading
import urllib.parse

import pytest
from recipe_stand_ins import LARGE, Recipe

pytestmark = pytest.mark.long


@pytest.fixture(params=LARGE)
def recipe(request, tmp_path):
    return Recipe(request.param, tmp_path)


def told(result):
    """What it says of its failure: sentences, no traceback."""
    assert result.returncode, result.stdout[-2000:] + result.stderr
    assert "Traceback" not in result.stderr and "error: step fetch failed" in result.stderr
    return result.stderr


def raw_files(work):
    """Those that fetch leaves, archives apart."""
    return {
        path.name: path.read_bytes()
        for path in sorted((work / "raw").iterdir())
        if path.is_file() and not path.name.endswith((".tgz", ".parquet"))
    }


class Breaking(http.server.SimpleHTTPRequestHandler):
    """Of every file the first request breaks off in the middle, and the second stands still."""

    def do_GET(self):
        path = self.translate_path(urllib.parse.unquote(self.path))
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            data = file.read()
        self.server.asked[path] = number = self.server.asked.get(path, 0) + 1
        wanted = self.headers.get("Range")
        start = int(wanted[6:-1]) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        self.wfile.write(rest if number > 2 else rest[: len(rest) // 2])
        self.wfile.flush()
        if number == 2:
            self.server.over.wait(60)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def breaking(recipe):
    handler = functools.partial(Breaking, directory=str(recipe.archives))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked, server.over = {}, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def test_downloads_that_break_and_stand_still(recipe, breaking):
    """Each file goes on where it was, twice, and is what it would have been."""
    whole = recipe("--until", "fetch")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    expected = raw_files(recipe.work)
    work = recipe.folder / "another work folder"
    mirror = f"http://127.0.0.1:{breaking.server_port}"
    variables = {"ESRL_MIRROR": mirror, "ESRL_WORK_DIR": str(work), "ESRL_STALL_SECONDS": "1"}
    result = recipe("--until", "fetch", **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert breaking.asked and set(breaking.asked.values()) == {3}
    assert expected and raw_files(work) == expected


def test_another_file_than_expected(recipe):
    """By the recipe's sums, or by that of the first time; the right one is taken afterwards."""
    assert recipe("--until", "fetch").returncode == 0
    archive = sorted(recipe.archives.iterdir())[0]
    right = archive.read_bytes()
    archive.write_bytes(right + b"x")
    result = recipe("--from", "fetch", "--until", "fetch")
    assert re.search("is not the file that this recipe|has changed since this recipe", told(result))
    archive.write_bytes(right)
    result = recipe("--until", "fetch")
    assert result.returncode == 0, result.stderr
    assert (recipe.work / "replaced" / "1" / "raw").is_dir()  # what --from put away


def test_an_archive_that_is_cut_off(recipe):
    """By its sum; where that is not known by who reads it, and then it is fetched anew."""
    archive = sorted(recipe.archives.iterdir())[0]
    right = archive.read_bytes()
    archive.write_bytes(right[: len(right) // 2])
    assert re.search(
        "is not the file that this recipe|is no whole ", told(recipe("--until", "fetch"))
    )
    archive.write_bytes(right)
    result = recipe("--until", "fetch")
    assert result.returncode == 0, result.stderr


def full(path):
    """What is written there meets a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")
    return path


def test_a_full_disk_in_every_step_of_the_data(recipe):
    """Told as that; when there is room, the same command goes on."""
    steps = [name for name in steps_of(recipe) if name in ("fetch", "clean", "bpe", "binarize")]
    first = {"fetch": "raw/train.article", "clean": "clean/train.{}", "bpe": "bpe/codes"}
    ending = {"cnn_dm": "article", "wmt14_en_de": "en", "wmt18_en_de": "en"}.get(recipe.name, "de")
    if recipe.name == "rlhf_llama":
        first = {"fetch": "clean/train", "binarize": "ids/dict.txt"}
    elif recipe.name != "cnn_dm":
        first["fetch"] = f"raw/train.{ending}"
    if recipe.name == "iwslt14_de_en":
        first["clean"] = "clean/test.{}"
    for step in steps:
        if step not in first or first[step].startswith("ids/"):
            continue  # it makes its folder anew
        path = full(recipe.work / first[step].format(ending))
        result = recipe("--until", step)
        assert result.returncode and f"step {step} failed" in result.stderr, result.stdout
        assert "is full" in result.stderr and "Traceback" not in result.stderr
        path.unlink()
    result = recipe("--until", steps[-1])
    assert result.returncode == 0, result.stderr


def steps_of(recipe):
    return re.findall(r"^ ?\d+\. (\S+)", recipe("--dry-run").stdout, re.M)


def test_a_second_run_at_once(recipe):
    (recipe.work / "steps").mkdir(parents=True)
    with (recipe.work / "steps" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = recipe()
    assert result.returncode == 1 and "another run works in" in result.stderr
    assert result.stderr.count("\n") == 1 and not (recipe.work / "raw").exists()


def content(folder):
    """Of all files; of what preprocessing logs the times differ."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "preprocess.log"
    }


def test_killed_in_every_step_of_the_data(recipe):
    """The same command then has the data of a run that was left alone."""
    alone = recipe("--until", "binarize")
    assert alone.returncode == 0, alone.stdout[-2000:] + alone.stderr
    expected = content(recipe.work / "data-bin")
    recipe.work.rename(recipe.folder / "left alone")
    steps = steps_of(recipe)
    for step in steps[: steps.index("binarize") + 1]:
        recipe.killed_in(step, "--until", "binarize")
    result = recipe("--until", "binarize")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert expected and content(recipe.work / "data-bin") == expected


@pytest.mark.parametrize("recipe", ["iwslt14_de_en", "cnn_dm", "rlhf_llama"], indirect=True)
def test_killed_in_every_step(recipe):
    """The same command then ends with the output of a run that was left alone."""
    alone = recipe()
    assert alone.returncode == 0, alone.stdout[-2000:] + alone.stderr
    expected = {path.name: path.read_text() for path in (recipe.work / "out").glob("*.txt")}
    recipe.work.rename(recipe.folder / "left alone")
    for step in steps_of(recipe):
        recipe.killed_in(step, after=0.5)
    result = recipe()
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    for name, text in expected.items():
        assert (recipe.work / "out" / name).read_text() == text, name
