"""The text of token ids against fairseq's own functions, called as fairseq_cli/generate.py does."""

import pytest
import torch
from fairseq import utils
from fairseq.data import Dictionary

from esrl_fairseq.data.text import (
    UNK_IN_HYPOTHESIS,
    UNK_IN_REFERENCE,
    hypothesis_text,
    reference_text,
    source_text,
)
from esrl_fairseq.rewards import build_reward

WORDS = ["the", "d@@", "o@@", "g", "▁a", "▁b", "c", "bar@@", "ks", ".", "|", "_", "é"]
POST_PROCESS = [None, "@@ ", "subword_nmt", "sentencepiece", "wordpiece", "letter", "none"]


@pytest.fixture(scope="module")
def dictionary():
    result = Dictionary()
    for word in WORDS:
        result.add_symbol(word)
    return result


def random_rows(dictionary, rows=60):
    """[rows, 14] ids with unknown words; EOS somewhere, padding after it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(dictionary.unk(), len(dictionary), (rows, 14), generator=generator)
    for row, length in zip(ids, torch.randint(0, 14, (rows,), generator=generator).tolist()):
        row[length] = dictionary.eos()
        row[length + 1 :] = dictionary.pad()
    return ids


def generated_lines(row, dictionary, post_process, strip_ids, decode):
    """H- and D- as in fairseq_cli/generate.py, for tokens as SequenceGenerator returns them."""
    _, hypothesis, _ = utils.post_process_prediction(
        hypo_tokens=utils.strip_pad(row, dictionary.pad()).int().cpu(),
        src_str="",
        alignment=None,
        align_dict=None,
        tgt_dict=dictionary,
        remove_bpe=post_process,
        extra_symbols_to_ignore=strip_ids,
    )
    return hypothesis, decode(hypothesis)


def decode(text):
    return text.replace(" .", ".").upper()


@pytest.mark.parametrize("post_process", POST_PROCESS)
def test_hypothesis_is_the_line_of_fairseq_generate(dictionary, post_process):
    for extra in (set(), {dictionary.index("c")}):
        strip_ids = {dictionary.eos()} | extra
        for row in random_rows(dictionary):
            line, detokenised = generated_lines(row, dictionary, post_process, strip_ids, decode)
            args = (row.tolist(), dictionary, post_process, strip_ids)
            assert hypothesis_text(*args) == line
            assert hypothesis_text(*args, decode=decode) == detokenised


@pytest.mark.parametrize("post_process", POST_PROCESS)
def test_reference_and_source_are_the_lines_of_fairseq_generate(dictionary, post_process):
    strip_ids = {dictionary.eos()}
    for row in random_rows(dictionary):
        stripped = utils.strip_pad(row, dictionary.pad()).int().cpu()
        target = dictionary.string(
            stripped, post_process, escape_unk=True, extra_symbols_to_ignore=strip_ids
        )
        ids = row.tolist()
        assert reference_text(ids, dictionary, post_process, strip_ids) == target
        assert reference_text(ids, dictionary, post_process, strip_ids, decode) == decode(target)
        source = dictionary.string(stripped, post_process)
        assert source_text(ids, dictionary, post_process) == source
        assert source_text(ids, dictionary, post_process, decode) == decode(source)


def test_by_hand(dictionary):
    d, strip = dictionary, {dictionary.eos()}
    dog = [d.index("the"), d.index("d@@"), d.index("o@@"), d.index("g"), d.unk(), d.eos()]
    row = [d.pad(), d.bos(), *dog, d.pad(), d.pad()]
    assert hypothesis_text(row, d, "@@ ", strip) == "the dog <unk>"
    assert hypothesis_text(row, d, None, strip) == "the d@@ o@@ g <unk>"
    assert reference_text(row, d, "@@ ", strip) == "the dog <<unk>>"
    assert source_text(row, d, "@@ ") == "the dog <unk>"


@pytest.mark.parametrize("length", [0, 1, 5])
def test_rows_without_words_are_empty(dictionary, length):
    ids = [dictionary.eos()] + [dictionary.pad()] * length
    for post_process in POST_PROCESS:
        assert hypothesis_text(ids, dictionary, post_process, {dictionary.eos()}) == ""
    assert hypothesis_text([], dictionary, None, set()) == ""


def test_strip_ids_may_be_empty(dictionary):
    row = [dictionary.index("the"), dictionary.eos(), dictionary.pad()]
    assert hypothesis_text(row, dictionary, None, set()) == "the"


def test_tensors_are_taken_too_and_nothing_is_changed(dictionary):
    strip_ids, size = {dictionary.eos()}, len(dictionary)
    for row in random_rows(dictionary, 5):
        before = row.clone()
        expected = hypothesis_text(row.tolist(), dictionary, "@@ ", strip_ids)
        assert hypothesis_text(row, dictionary, "@@ ", strip_ids) == expected
        assert torch.equal(row, before)
    assert strip_ids == {dictionary.eos()} and len(dictionary) == size


def test_unknown_words_can_be_told_apart_after_tokenisation(dictionary):
    from sacrebleu import BLEU

    tokenize = BLEU().tokenizer
    ids, args = [dictionary.unk()], (dictionary, "@@ ", set())
    printed = hypothesis_text(ids, *args), reference_text(ids, *args)
    assert printed == ("<unk>", "<<unk>>")
    assert set(tokenize(printed[0]).split()) == set(tokenize(printed[1]).split())  # the trap
    hypothesis = hypothesis_text(ids, *args, unk_string=UNK_IN_HYPOTHESIS)
    reference = reference_text(ids, *args, unk_string=UNK_IN_REFERENCE)
    assert tokenize(hypothesis) == UNK_IN_HYPOTHESIS and tokenize(reference) == UNK_IN_REFERENCE


@pytest.mark.parametrize(
    "name, options",
    [
        *(("bleu", {"tokenize": kind}) for kind in ("13a", "none", "intl", "char", "zh")),
        ("bleu", {"lowercase": True}),
        ("chrf", {}),
        ("chrf", {"word_order": 2, "lowercase": True, "whitespace": True}),
        ("chrf", {"eps_smoothing": True}),
        ("ter", {"normalized": True, "no_punct": True, "asian_support": True}),
        ("rouge", {}),
        ("rouge", {"use_stemmer": False}),
    ],
)
def test_unknown_words_match_nothing_under_any_reward(name, options):
    """Neither each other nor other words, whole or by characters."""
    if name == "rouge":
        pytest.importorskip("rouge_score")
    reward = build_reward(name, **options)
    references = [["the XY sits on the mat ."], ["the XY , XY !"]]
    references = [[text.replace("XY", UNK_IN_REFERENCE) for text in own] for own in references]
    for own in references:
        # A word of another length would weigh differently.
        texts = [own[0].replace(UNK_IN_REFERENCE, word) for word in (UNK_IN_HYPOTHESIS, "kkkk")]
        unknown, other = reward(["s"] * 2, texts, [own] * 2)
        assert unknown == other < 1
    others = [["the cat sits on the mat"], references[1]]
    assert reward(["s"] * 2, [UNK_IN_HYPOTHESIS] * 2, others).tolist() == [0, 0]


def test_stand_ins_share_no_character():
    assert not set(UNK_IN_HYPOTHESIS.lower()) & set(UNK_IN_REFERENCE.lower())
    assert (UNK_IN_HYPOTHESIS + UNK_IN_REFERENCE).isascii()
    assert UNK_IN_HYPOTHESIS.isalpha() and UNK_IN_REFERENCE.isalpha()
