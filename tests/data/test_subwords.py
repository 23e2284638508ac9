"""How sub-words are marked, and which values of fairseq's --post-process fit."""

import logging
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary
from helpers import make_criterion, make_task
from reward_texts import DATA

from esrl_fairseq.data.subwords import check_joining, dictionary_words, markings
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.scorer import check_subwords

PLAIN = "the cat sees a red house , and its dog sleeps in it today ."
ODD = {"▁": 2, "@@": 3, "_": 5, "|": 9, "##": 4, "x@@": 1, "▁y": 1, "Ġan": 1, "_z": 1}
"""Words that look like marks, as they occur in real vocabularies of other kinds."""
MARKED = {
    "subword_nmt": "the cat sees a re@@ d ho@@ use , and it@@ s dog sle@@ ep@@ s",
    "sentencepiece": "▁the ▁cat ▁see s ▁a ▁re d ▁ho use , ▁and ▁its ▁dog",
    "wordpiece": "the_ cat_ see s_ a_ re d_ ho use_ , _ and_ its_ dog_",
    "letter": "t h e | c a t | s e e s | a | r e d | h o u s e |",
    "_EOW": "the_EOW cat_EOW see s_EOW a_EOW re d_EOW ho use_EOW",
    "": "the cat see ##s a re ##d ho ##use and it ##s dog",
    " ": "Ġthe Ġcat Ġsee s Ġa Ġre d Ġho use Ġand Ġits Ġdog",
    "  ": "the</w> cat</w> see s</w> a</w> re d</w>",
}
"""Marked texts by the value that joins them; blank where fairseq has none."""
VALUES = ["subword_nmt", "@@ ", "@@", "sentencepiece", "wordpiece", "letter", "_EOW", "silence"]


def counted(text):
    """Words and how often they occur, in a dictionary with many plain ones, and odd ones."""
    words = dict.fromkeys(text.split(), 0)
    for word in text.split():
        words[word] += 1
    return words


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("right", MARKED)
def test_values_that_fit_are_taken_and_others_refused(right, value, warnings):
    words = counted(MARKED[right])
    if {value, right} <= {"subword_nmt", "@@ "} or value == right:
        check_joining(value, words, "the dictionary")
    else:
        mend = (
            f"give --reward-post-process {right}" if right.strip() else "no value of fairseq's does"
        )
        with pytest.raises(EsrlError, match=f"{value!r} does not join .*the dictionary.*{mend}"):
            check_joining(value, words, "the dictionary")
    assert not warnings()


@pytest.mark.parametrize("right", MARKED)
def test_none_is_warned_of(right, warnings):
    check_joining("none", counted(MARKED[right]), "the dictionary")
    (warning,) = warnings()
    assert "leaves the sub-words of the dictionary" in warning
    assert (f"{right} joins them" in warning) == bool(right.strip())


@pytest.mark.parametrize("counts", [True, False])
def test_odd_words_are_no_marks(counts, warnings):
    words = {f"word{i}": 50 for i in range(1000)} | {w: ODD[w] if counts else 1 for w in ODD}
    assert not markings(words)
    for value in ("subword_nmt", "@@ ", "none"):
        check_joining(value, words, "the dictionary")
    assert not warnings()
    marked = words | {f"▁w{i}": 1 for i in range(1000)}  # a rare odd word decides nothing there
    assert [marking.maker for marking, _ in markings(marked)] == ["SentencePiece"]
    with pytest.raises(EsrlError, match="give --reward-post-process sentencepiece"):
        check_joining("subword_nmt", marked, "the dictionary")


def test_characters_with_a_lone_mark():
    words = {letter: 10 for letter in "abcdefghijklmnopqrstuvwxyz"}
    check_joining("subword_nmt", words, "the dictionary")
    with pytest.raises(EsrlError, match="give --reward-post-process sentencepiece"):
        check_joining("subword_nmt", words | {"▁": 40}, "the dictionary")
    check_joining("letter", words, "the dictionary")  # as one may want it, in Chinese say


def test_removing_all_blanks(warnings):
    with pytest.raises(EsrlError, match="'sentencepiece' removes all blanks.*the text"):
        check_joining("sentencepiece", counted(PLAIN), "the text")
    check_joining("letter", counted("我们 喜欢 这个 地方"), "the text")
    assert len(warnings()) == 1


def test_complaints_instead_of_refusals():
    told = []
    check_joining("@@", counted(MARKED["subword_nmt"]), "the sources", "mend", told.append)
    check_joining("wordpiece", counted(PLAIN), "the sources", "mend", told.append)
    assert len(told) == 2 and all(message.endswith(": mend") for message in told)


def test_numbers_are_warned_of(warnings):
    check_joining("subword_nmt", {str(i): 1 for i in range(30)}, "the dictionary")
    assert not warnings()
    check_joining("subword_nmt", {str(i): 1 for i in range(3000)}, "the dictionary")
    assert "ids, not text" in warnings()[0]


def dictionary(text):
    result = Dictionary()
    for word in text.split():
        result.add_symbol(word)
    return result


def test_both_sides_of_a_task(warnings):
    """Sources matter where the reward needs them; other libraries' words are none of fairseq's."""
    one, other = (dictionary(MARKED[right]) for right in ("subword_nmt", "sentencepiece"))
    same = SimpleNamespace(
        source_dictionary=one, target_dictionary=dictionary(MARKED["subword_nmt"])
    )
    check_subwords("subword_nmt", same, True)
    task = SimpleNamespace(source_dictionary=other, target_dictionary=one)
    with pytest.raises(EsrlError, match="of the source dictionary.*SentencePiece.*both sides"):
        check_subwords("subword_nmt", task, True)
    assert not warnings()
    check_subwords("subword_nmt", task, False)
    assert "of the source dictionary" in warnings()[0]
    with pytest.raises(EsrlError, match="of the target dictionary.*subword-nmt"):
        check_subwords("sentencepiece", task, False)
    # A task whose model knows the text of words needs no post-processing.
    task = make_task()
    task.word_decoder = lambda: str
    task.tgt_dict = task.src_dict = other
    make_criterion(task)
    task.word_decoder = None
    with pytest.raises(EsrlError, match="of the dictionary, made by SentencePiece"):
        make_criterion(task)


def test_a_real_dictionary():
    path = DATA / "multi30k" / "mle" / "dict.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here (see ESRL_TEST_DATA in CONTRIBUTING.md)")
    words = dictionary_words(Dictionary.load(str(path)))
    assert [marking.maker for marking, _ in markings(words)] == ["subword-nmt"]
    check_joining("subword_nmt", words, "the dictionary")
