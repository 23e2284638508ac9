"""Texts of any characters, words with any marks, options and answers of any kind."""

import contextlib
import string
from types import SimpleNamespace

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils
from hypothesis import given
from hypothesis import strategies as st
from test_rewards import Fake

from esrl_fairseq.checks.options import check_controls, check_timeout, number_or_nan
from esrl_fairseq.data.references import encode
from esrl_fairseq.data.subwords import VALUES, check_joining, markings
from esrl_fairseq.data.text import hypothesis_text, reference_text, source_text
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward, command_line_options, score_rows
from esrl_fairseq.rewards.__main__ import read
from esrl_fairseq.rewards.build import parse_name
from esrl_fairseq.sampling.options import SamplingConfig, check_sampling_options

characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=20)
# fairseq separates words at whatever Python takes for blanks.
words = st.text(characters, min_size=1, max_size=6).filter(lambda word: word.split() == [word])
names = {"<s>", "</s>", "<pad>", "<unk>"}


def dictionary(known):
    result = Dictionary()
    for word in known:
        result.add_symbol(word)
    return result


@given(st.lists(words.filter(lambda word: word not in names), max_size=8), st.integers(0, 3))
def test_any_words_come_back_from_their_ids(line, padding):
    """With ids before, between and behind that are no words."""
    known = dictionary(line)
    ids = encode(" ".join(line), known).tolist()
    assert len(ids) == len(line) + 1 and known.unk() not in ids
    ids = [known.pad()] * padding + ids + [known.pad()] * padding
    for text in (hypothesis_text, reference_text):
        assert text(ids, known, None, {known.eos()}) == " ".join(line)
    assert source_text(ids, known, None) == " ".join(line)


@given(texts)
def test_unknown_words_are_counted_as_such(line):
    """A dictionary that knows none of them."""
    known = dictionary([])
    ids = encode(line, known)
    assert len(ids) == len(line.split()) + 1
    shown = reference_text(ids, known, None, {known.eos()}, unk_string="XX")
    unknown = [word for word in line.split() if word not in names]
    assert shown.split().count("XX") >= len(unknown)


plain = st.text(string.ascii_letters + "äß中文éø", min_size=1, max_size=8)


@pytest.mark.parametrize("value", VALUES)
@given(line=st.lists(plain, min_size=1, max_size=12), every=st.integers(3, 6))
def test_marked_subwords_are_known_and_joined(value, line, every):
    """Words in up to three pieces, in each way that fairseq joins. (Of more pieces too few end a
    word to tell tensor2tensor's mark from an underscore.)"""

    def split(word):
        pieces = [word[i : i + every] for i in range(0, len(word), every)]
        if value == "subword_nmt":
            return [*(f"{piece}@@" for piece in pieces[:-1]), pieces[-1]]
        if value == "sentencepiece":
            return ["▁" + pieces[0], *pieces[1:]]
        if value == "letter":
            return [*word, "|"]
        end = "_" if value == "wordpiece" else "_EOW"
        return [*pieces[:-1], pieces[-1] + end]

    marked = [piece for word in line for piece in split(word)]
    assert data_utils.post_process(" ".join(marked), value).split() == line
    counts = {piece: marked.count(piece) for piece in marked}
    check_joining(value, counts, "the dictionary")


odd = st.text(st.sampled_from("ab1é中@#▁_|Ġ￭</w>EOW"), min_size=1, max_size=6)


@given(st.dictionaries(odd, st.integers(0, 100), max_size=12), st.one_of(odd, texts), texts)
def test_any_words_are_judged(counts, value, mend):
    for marking, word in markings(counts):
        assert marking.marks(word) and word in counts
    for chosen in (*VALUES, "none", "silence", value):
        with contextlib.suppress(EsrlError, NotImplementedError):  # fairseq's, of unknown values
            check_joining(chosen, counts, "the dictionary", mend)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("texts") / "file"


@given(st.lists(st.text(characters).filter(lambda text: not set(text) & set("\r\n")), max_size=9))
def test_lines_of_a_file_end_with_line_feeds_alone(file, lines):
    """Not with the other characters that Python takes for ends of lines."""
    file.write_bytes("".join(line + "\n" for line in lines).encode())
    assert read(file, len(lines)) == lines


@given(st.binary(max_size=40))
def test_files_of_anything(file, content):
    file.write_bytes(content)
    with contextlib.suppress(EsrlError):
        read(file)


# --- options ----------------------------------------------------------------------------------

pieces = st.sampled_from(
    [*"+:.,= ", "bleu", "chrf", "rouge", "hf-reward", "python:", "python:nowhere_at_all.f", "model",
     "0.5", "-1", "nan", "1e999", "true", "none", "word_order", "tokenize", "13a", "batch_size"]
)  # fmt: skip
options = st.one_of(texts, st.lists(pieces, max_size=8).map("".join))


@given(options)
def test_any_name_of_a_reward(name):
    """A reward, or one sentence."""
    with contextlib.suppress(EsrlError):
        assert all(part for part, _ in parse_name(name))
        build_reward(name)


@given(st.sampled_from(["bleu", "bleu:0.5+chrf:0.5", "chrf+hf-reward", "model"]),
       options, st.one_of(st.none(), options), st.one_of(st.none(), options))  # fmt: skip
def test_any_options_of_rewards(name, given_options, model, device):
    with contextlib.suppress(EsrlError):
        found = command_line_options(name, given_options, model, device)
        assert set(found) == {part for part, _ in parse_name(name)}


@given(options, st.floats(), st.integers(), st.integers())
def test_any_options_of_sampling(text, number, most, fewest):
    numbers = dict(min_sample_temperature=number, sample_max_len_a=number)
    counts = dict(num_samples=most, min_samples=fewest)
    for given_options in (dict(elimination_ratio=text), numbers, counts):
        cfg = SamplingConfig()
        for name, value in given_options.items():
            setattr(cfg, name, value)
        with contextlib.suppress(EsrlError):
            check_sampling_options(cfg)
    with contextlib.suppress(EsrlError):
        check_controls(
            SimpleNamespace(reward_control="none", input_baseline=False, capability_noise=text)
        )
    with contextlib.suppress(EsrlError):
        check_timeout(number)
    assert isinstance(number_or_nan(text), float)


# --- answers ----------------------------------------------------------------------------------

simple = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=3),
    st.complex_numbers(), st.fractions(), st.decimals(), st.dates(),
    st.just(10**400), st.just(object()), st.just(np.float64(0.5)), st.just(np.array("0.5")),
)  # fmt: skip
answers = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner, inner), st.lists(inner).map(iter),
        st.dictionaries(st.integers(), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


@given(st.one_of(answers, st.lists(simple, min_size=3, max_size=3)))
def test_any_answer_of_a_reward(answer):
    """Numbers, or one sentence."""
    reward = Fake(lambda pairs: answer)
    try:
        found = score_rows(reward, ["s"], ["x", "y", "z"], [["r"]], [0, 0, 0], [7])
    except EsrlError as error:
        assert "reward 'fake' r" in str(error)
    else:
        assert found.dtype == np.float32 and found.shape == (3,)
        assert ((found >= 0) & (found <= 1)).all()
