"""Binarized files that are damaged, and dictionaries; through the command line in
tests/commands/test_cli_data.py."""

import time

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.data.indexed_dataset import IndexedDatasetBuilder, MMapIndexedDatasetBuilder

import esrl_fairseq  # noqa: F401  (its shims)
from esrl_fairseq.data import stored
from esrl_fairseq.data.stored import check_stored
from esrl_fairseq.errors import EsrlError

LINES = [[4, 5, 2], [4, 2], [9, 9, 9, 2], [2]]
BUILDERS = {"mmap": MMapIndexedDatasetBuilder, "cached": IndexedDatasetBuilder}


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """Several of them."""
    monkeypatch.setattr(stored, "AT_ONCE", 3)


@pytest.fixture(scope="module")
def words():
    """A dictionary of ten words."""
    dictionary = Dictionary()
    for word in "abcdef":
        dictionary.add_symbol(word)
    assert len(dictionary) == 10
    return dictionary


def write(folder, kind="mmap", dtype=np.int32, lines=LINES, name="train.de-en.de"):
    """The path of a pair of files."""
    path = folder / name
    builder = BUILDERS[kind](f"{path}.bin", dtype)
    for line in lines:
        builder.add_item(torch.tensor(line, dtype=torch.int64))
    builder.finalize(f"{path}.idx")
    return str(path)


def change(file, content):
    with open(file, "wb") as stream:
        stream.write(content)


def refusal(path, kind="mmap", dictionary=None):
    with pytest.raises(EsrlError) as found:
        check_stored(path, kind, dictionary)
    sentence = str(found.value)
    assert f"{path}.bin" in sentence and "fairseq-preprocess" in sentence
    return sentence


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_whole_files(kind, dtype, words, tmp_path):
    if kind == "cached" and dtype is np.uint16:
        return  # its builder has no such numbers
    path = write(tmp_path, kind, dtype)
    check_stored(path, kind, words)
    read = data_utils.load_indexed_dataset(path, words)
    if kind == "cached":
        read.prefetch(range(len(read)))
    assert [read[i].tolist() for i in range(len(read))] == LINES


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_bit_of_an_index(kind, dtype, words, tmp_path):
    path = write(tmp_path, kind, dtype)
    index = (tmp_path / "train.de-en.de.idx").read_bytes()
    for bit in range(8 * len(index)):
        flipped = bytearray(index)
        flipped[bit // 8] ^= 1 << bit % 8
        change(f"{path}.idx", flipped)
        refusal(path, kind, words)


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("end", ["bin", "idx"])
def test_every_length(kind, end, words, tmp_path):
    """Cut off anywhere, empty, or with something behind."""
    path = write(tmp_path, kind)
    with open(f"{path}.{end}", "rb") as file:
        whole = file.read()
    for length in range(len(whole)):
        change(f"{path}.{end}", whole[:length])
        assert "are not whole (" in refusal(path, kind, words)
    for more in (b"x", bytes(4), bytes(12), whole):
        change(f"{path}.{end}", whole + more)
        assert "are not whole (" in refusal(path, kind, words)


@pytest.mark.parametrize("kind", BUILDERS)
def test_words_that_the_dictionary_does_not_have(kind, words, tmp_path):
    for line, word in ((1, 10), (3, 70000), (4, -1)):
        lines = [list(own) for own in LINES]
        lines[line - 1][0] = word
        path = write(tmp_path, kind, lines=lines)
        sentence = refusal(path, kind, words)
        assert f"de.bin, line {line}: there is a word number {word:,}, but the dictionary has the "
        assert f"line {line}: there is a word number {word:,}" in sentence
        assert "the words 0 to 9: give the dictionary" in sentence
        check_stored(path, kind)  # whose words they are is not known


@pytest.mark.parametrize(
    "files, what",
    [
        ({"idx": b""}, "the index is empty"),
        ({"idx": b"no index"}, "the index has no head"),
        ({"idx": b"MMIDIDX\x00\x00"}, "9 bytes of the index where its head alone takes 26"),
        ({"bin": b""}, "0 bytes where the index says 40"),
        ({"bin": b"text"}, "4 bytes where the index says 40"),
    ],
)
def test_what_is_said(files, what, tmp_path):
    path = write(tmp_path)
    for end, content in files.items():
        change(f"{path}.{end}", content)
    assert f"{path}.bin and train.de-en.de.idx are not whole ({what})" in refusal(path)


def test_other_kinds_of_files(words, tmp_path):
    cached, mmap = write(tmp_path, "cached"), write(tmp_path, "mmap", name="valid")
    assert "is one of --dataset-impl cached, not of mmap" in refusal(cached, "mmap")
    assert "is one of --dataset-impl mmap, not of lazy" in refusal(mmap, "lazy")
    check_stored(cached, "lazy", words)
    check_stored(str(tmp_path / "gone"), "mmap")  # fairseq says so
    check_stored(str(tmp_path / "gone"), "raw")
    for end in ("bin", "idx"):
        path = write(tmp_path, name=f"no.{end}")
        (tmp_path / f"no.{end}.{end}").unlink()
        with pytest.raises(EsrlError, match=f"there is no {path}.{end} beside"):
            check_stored(path, "mmap")
    with pytest.raises(EsrlError, match="there is no line in them"):
        check_stored(write(tmp_path, lines=[]), "mmap")
    with pytest.raises(EsrlError, match="all lines are empty"):
        check_stored(write(tmp_path, lines=[[], []]), "mmap")
    check_stored(write(tmp_path, lines=[[], [4], [], [5]]), "mmap", words)
    floats = write(tmp_path, dtype=np.float64)
    with pytest.raises(EsrlError, match="says float64, but words are whole numbers"):
        check_stored(floats, "mmap", words)
    check_stored(floats, "mmap")


def test_every_road_of_fairseq(words, tmp_path):
    """Whatever task it is that reads; the other parts of a data set, too."""
    path = write(tmp_path)
    write(tmp_path, name="train.de-en.de1", lines=[[11, 2]])
    data_utils.load_indexed_dataset(path, words)
    with pytest.raises(EsrlError, match="de1.bin, line 1: there is a word number 11"):
        data_utils.load_indexed_dataset(path, words, combine=True)
    (tmp_path / "train.de-en.de.idx").write_bytes(b"")
    assert indexed_dataset.infer_dataset_impl(path) is None
    with pytest.raises(EsrlError, match="the index is empty"):
        data_utils.load_indexed_dataset(path, words)


@pytest.mark.parametrize(
    "content, why",
    [
        (b"hund 3\nkatze\n", "Incorrect dictionary format, .*katze"),
        (b"hund 3\nkatze viele\n", "Incorrect dictionary format"),
        (b"hund 3\nhund 2\n", "Duplicate word found"),
        (b"hund 3\n\xff\xfe\x00 1\n", "Incorrect encoding"),
        (None, "Is a directory"),
    ],
)
def test_damaged_dictionaries(content, why, tmp_path):
    file = tmp_path / "dict.de.txt"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(EsrlError, match=f"the dictionary {file} cannot be read .*{why}"):
        Dictionary.load(str(file))
    with pytest.raises(FileNotFoundError):
        Dictionary.load(str(tmp_path / "gone"))


def test_it_costs_little(words, tmp_path, monkeypatch):
    """Five million words in a million lines: far less than reading them in Python."""
    monkeypatch.undo()
    path = str(tmp_path / "train")
    np.tile(np.arange(4, 9, dtype=np.uint16), 10**6).tofile(f"{path}.bin")
    with indexed_dataset.MMapIndexedDataset.Index.writer(f"{path}.idx", np.uint16) as index:
        index.write(np.full(10**6, 5))
    began = time.process_time()
    check_stored(path, "mmap", words)
    assert time.process_time() - began < 0.5
