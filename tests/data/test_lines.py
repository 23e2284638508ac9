"""Places of lines in text files, and lines without text."""

import numpy as np
import pytest
import torch
from fairseq.data import ConcatDataset, Dictionary, LanguagePairDataset, PrependTokenDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

from esrl_fairseq.checks.data import check_references, refuse_empty_lines
from esrl_fairseq.data import lines as module
from esrl_fairseq.data.lines import PLACES, NamedLines, empty_lines, places, split_name
from esrl_fairseq.data.prompts import prompt_dataset
from esrl_fairseq.data.text import UNK_IN_REFERENCE, reference_text
from esrl_fairseq.errors import EsrlError

TEXTS = ["▁a b", "", "▁", "▁ ▁ ▁", "▁ a", "x", "▁ ▁ a ▁", "▁ " * 20, ""]
WORDS = ["▁", "▁a", "a", "b"]


@pytest.fixture
def dictionary():
    result = Dictionary()
    for word in WORDS:
        result.add_symbol(word)
    return result


@pytest.fixture
def binarize(dictionary, tmp_path):
    """From texts to what fairseq-preprocess makes of them."""

    def write(texts, dtype=np.int32):
        path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        builder = MMapIndexedDatasetBuilder(f"{path}.bin", dtype=dtype)
        for text in texts:
            builder.add_item(dictionary.encode_line(text, add_if_not_exist=False))
        builder.finalize(f"{path}.idx")
        return MMapIndexedDataset(path)

    return write


def joined(dictionary, decode=None):
    def text(ids):
        return reference_text(
            ids, dictionary, "sentencepiece", set(), decode, unk_string=UNK_IN_REFERENCE
        )

    return text


def plain_empty(side, text):
    return [i for i in range(len(side)) if not text(side[i].tolist()).strip()]


@pytest.mark.parametrize("chunk", [1 << 20, 2])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_empty_lines_are_those_whose_text_is(dtype, chunk, dictionary, binarize, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    side, text = binarize(TEXTS, dtype), joined(dictionary)
    found = empty_lines(side, len(dictionary), text).tolist()
    assert found == plain_empty(side, text) == [1, 2, 3, 7, 8]
    assert empty_lines(side, len(dictionary), lambda ids: dictionary.string(ids)).tolist() == [1, 8]


def test_what_the_reward_sees_decides(dictionary, binarize):
    """A detokenizer, or another library's words, may leave nothing."""
    text = joined(dictionary, lambda words: words.replace("b", ""))
    side = binarize(["b", "a b", "b b", "x"])
    assert empty_lines(side, len(dictionary), text).tolist() == [0, 2] == plain_empty(side, text)


def test_each_word_is_asked_of_once(dictionary, binarize):
    asked = []
    empty_lines(binarize(TEXTS * 3), len(dictionary), lambda ids: asked.append(ids) or "")
    assert len(asked) == len({ids for (ids,) in asked}) <= len(dictionary)


def test_several_files_and_wrappers(dictionary, binarize):
    """train and train1, the first one twice: fairseq's --upsample-primary."""
    side = ConcatDataset([binarize(TEXTS[:5]), binarize(TEXTS[5:])], [2, 1])
    text = joined(dictionary)
    found = empty_lines(side, len(dictionary), text).tolist()
    assert found == plain_empty(side, text) == [1, 2, 3, 6, 7, 8, 12, 13]
    expected = ["train.en, line 2", "train.en, line 2", "train1.en, line 3"]
    assert places(side, [1, 6, 12], "train", "en") == expected
    wrapped = PrependTokenDataset(side, dictionary.bos())
    assert places(wrapped, [12], "train") == ["train1, line 3"]
    # Lines that come one by one are looked at where they are short.
    assert empty_lines(wrapped, len(dictionary), text).tolist() == [1, 2, 3, 6, 7, 8, 13]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_prompts_and_what_follows_them(most, dictionary, binarize):
    dataset = prompt_dataset(binarize(TEXTS), dictionary, most, dictionary.eos(), False)
    text = joined(dictionary)
    for side in (dataset.src, dataset.tgt):
        assert empty_lines(side, len(dictionary), text).tolist() == plain_empty(side, text)
    with pytest.raises(EsrlError, match="^train, line [12] ends with its prompt .the first of"):
        refuse_empty_lines(dataset.tgt, dictionary, "train", "", text)


def test_another_dictionary(dictionary, binarize):
    with pytest.raises(EsrlError, match="word number 7, but their dictionary has 6"):
        empty_lines(binarize(["b"]), 6, lambda ids: "text")


def test_sentences(dictionary, binarize):
    side, text = binarize(TEXTS), joined(dictionary)
    dataset = LanguagePairDataset(side, side.sizes, dictionary, side, side.sizes, dictionary)
    with pytest.raises(EsrlError) as error:
        check_references(dataset, "valid", "en", "--reward bleu", None)
    assert str(error.value) == (
        "valid.en, line 2 is empty (the first of 2 such lines), but --reward bleu needs "
        "references: remove such lines from both sides and run fairseq-preprocess again, or choose "
        "a reward that needs none"
    )
    with pytest.raises(EsrlError, match="^valid.en, line 1 has no text, only '▁': remove"):
        refuse_empty_lines(binarize(["▁", "a"]), dictionary, "valid", "en", text)
    refuse_empty_lines(binarize(["a", "x"]), dictionary, "valid", "en", text)
    check_references(dataset, "valid", "en", "", None)
    check_references(dataset, "valid", "en", "--eval-bleu", None)


def test_names_of_splits():
    assert split_name("data", "train", "train", 3) == "train"
    assert split_name("a:b", "train", "train", 2) == "b/train"
    assert split_name("a:b", "train", "train", 3) == "a/train"
    assert split_name("a:b", "valid", "train", 2) == "a/valid"


def test_batches_bring_places(dictionary, binarize):
    side = ConcatDataset([binarize(TEXTS[:5]), binarize(TEXTS[5:])])
    plain = LanguagePairDataset(side, side.sizes, dictionary, side, side.sizes, dictionary)
    named = NamedLines(plain, "train")
    items = [named[i] for i in (0, 5)]
    batch, expected = named.collater(items), plain.collater(items)
    place = dict(zip(batch["id"].tolist(), batch.pop(PLACES)))
    assert place == {0: "train, line 1", 5: "train1, line 1"}
    assert batch.keys() == expected.keys() and torch.equal(batch["target"], expected["target"])
    assert named.collater([]) == {}
