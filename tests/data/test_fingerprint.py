"""Fingerprints of training data: every token counts, and how it is stored does not."""

import shutil

import numpy as np
import pytest
import torch
from fairseq.data import ConcatDataset, Dictionary, LanguagePairDataset
from fairseq.data.data_utils import load_indexed_dataset
from fairseq.data.indexed_dataset import best_fitting_int_dtype, make_builder
from helpers import dictionary, make_dataset

from esrl_fairseq.data.fingerprint import check_shards, data_fingerprint, shard_marks
from esrl_fairseq.data.prompts import prompt_dataset
from esrl_fairseq.errors import EsrlError

WORDS = dictionary(" ".join(f"w{i}" for i in range(50)))


def write(prefix, lines, impl="mmap", dtype=None):
    """Lines of ids as fairseq-preprocess writes them."""
    if impl == "raw":
        text = "".join(" ".join(WORDS[i] for i in line[:-1]) + "\n" for line in lines)
        prefix.write_text(text)
        return
    builder = make_builder(f"{prefix}.bin", impl, vocab_size=len(WORDS))
    if dtype is not None:
        builder._dtype = dtype
    for line in lines:
        builder.add_item(torch.tensor(line))
    builder.finalize(f"{prefix}.idx")


def make_lines(number=300, seed=1):
    draw = np.random.default_rng(seed)
    return [
        [*draw.integers(4, len(WORDS), draw.integers(1, 9)), WORDS.eos()] for _ in range(number)
    ]


def pairs(folder, impl=None):
    sides = [load_indexed_dataset(str(folder / f"train.{s}"), WORDS, impl) for s in "ab"]
    sizes = [side.sizes for side in sides]
    return LanguagePairDataset(sides[0], sizes[0], WORDS, sides[1], sizes[1], WORDS)


@pytest.fixture
def folder(tmp_path):
    for side, seed in (("a", 1), ("b", 2)):
        write(tmp_path / f"train.{side}", make_lines(seed=seed))
    return tmp_path


def test_every_token_counts(folder):
    """One word of one line, at equal lengths, on either side; two lines exchanged."""
    own = data_fingerprint(pairs(folder))
    assert len(own) == 128 and data_fingerprint(pairs(folder)) == own
    found = {own}
    for side in "ab":
        path = folder / f"train.{side}.bin"
        content = path.read_bytes()
        for place in (100, len(content) // 2, len(content) - 4):
            changed = bytearray(content)
            changed[place // 2 * 2] ^= 1
            path.write_bytes(changed)
            found.add(data_fingerprint(pairs(folder)))
        path.write_bytes(content)
    assert len(found) == 7
    assert len({fingerprint[:64] for fingerprint in found}) < 7  # what there was before
    lines = make_lines(seed=1)
    one, other = next(
        (i, j) for i in range(300) for j in range(i) if len(lines[i]) == len(lines[j]) > 3
    )
    lines[one], lines[other] = lines[other], lines[one]
    write(folder / "train.a", lines)
    assert data_fingerprint(pairs(folder)) not in found


def test_words_of_the_dictionaries_count(folder):
    dataset = pairs(folder)
    own = data_fingerprint(dataset)
    for side in ("src_dict", "tgt_dict"):
        other = Dictionary()
        for word in WORDS.symbols[:3:-1]:
            other.add_symbol(word)
        changed = pairs(folder)
        setattr(changed, side, other)
        assert data_fingerprint(changed)[64:] != own[64:]


def test_how_lines_are_stored_does_not_count(folder, tmp_path):
    """Another integer type, raw text, or a copy made later."""
    own = data_fingerprint(pairs(folder))
    for name, impl, dtype in (("wide", "mmap", np.int32), ("raw", "raw", None)):
        other = tmp_path / name
        other.mkdir()
        for side, seed in (("a", 1), ("b", 2)):
            write(other / f"train.{side}", make_lines(seed=seed), impl, dtype)
        assert data_fingerprint(pairs(other, impl)) == own
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert data_fingerprint(pairs(tmp_path / "copy")) == own
    assert best_fitting_int_dtype(len(WORDS)) == np.uint16


def test_prompts_and_joined_parts(folder):
    """Prompts are told from each other by their lines' other words, too; parts by their order."""
    lines = [load_indexed_dataset(str(folder / f"train.{side}"), WORDS) for side in "ab"]
    found = set()
    for parts in (lines, lines[::-1], lines[:1]):
        joined = ConcatDataset(parts) if len(parts) > 1 else parts[0]
        for most in (None, 2, 3):
            found.add(data_fingerprint(prompt_dataset(joined, WORDS, most, 2, shuffle=False)))
    assert len(found) == 9


def test_data_in_memory():
    own = data_fingerprint(make_dataset())
    assert data_fingerprint(make_dataset()) == own
    changed = make_dataset()
    changed.tgt.items[2][0] += 1
    assert len({own, *map(data_fingerprint, (changed, make_dataset(5), make_dataset(seed=4)))}) == 4


def test_shards(folder, tmp_path):
    """Told from each other by their files of this pair of languages, wherever they are."""
    folders = []
    for number in range(3):
        shard = tmp_path / f"shard{number}"
        shard.mkdir()
        for language in ("de", "en"):
            write(shard / f"train.de-en.{language}", make_lines(seed=number))
            write(shard / f"train.fr-en.{language}", make_lines(seed=9 + number))
        (shard / "train.de-en.en1").write_text("a further reference\n")
        (shard / "valid.de-en.en.bin").write_bytes(bytes([number]))
        folders.append(str(shard))
    marks = shard_marks(folders, "train", ("de", "en"))
    assert len(set(marks)) == 3
    copy = shutil.copytree(folders[1], tmp_path / "copy")
    for name in ("train.de-en.en1", "valid.de-en.en.bin", "train.fr-en.en.bin"):
        (copy / name).write_text("else")
    assert shard_marks([str(copy)], "train", ("en", "de")) == marks[1:2]
    assert shard_marks(folders, "valid", ("de", "en")) != marks
    (copy / "train.de-en.en.bin").write_bytes(b"else")
    changed = shard_marks([str(copy)], "train", ("de", "en"))
    assert changed != marks[1:2]

    check_shards(marks, marks, folders)
    check_shards(marks[:1], changed, folders[:1])  # the store tells
    for saved, words in (
        (marks[:2], "with 2 data shards, but this run has 3"),
        ([*marks, "x"], "with 4 data shards, but this run has 3"),
        (marks[::-1], "the same data shards in another order"),
        ([*marks[:2], *changed], f"another data shard in the place of {folders[2]}"),
    ):
        with pytest.raises(EsrlError, match=words):
            check_shards(saved, marks, folders)


def test_shards_of_prompts(folder):
    write(folder / "train", make_lines())
    (first,) = shard_marks([str(folder)], "train", ("", ""))
    write(folder / "train1", make_lines())
    assert shard_marks([str(folder)], "train", ("", "")) != [first]
