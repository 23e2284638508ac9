"""Words of the data against those of the start model."""

from types import SimpleNamespace

import pytest
from helpers import dictionary

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.dictionary import ENTRY, check_dictionaries, fingerprints


def task(source="u v w", target="a b"):
    return SimpleNamespace(
        source_dictionary=dictionary(source), target_dictionary=dictionary(target)
    )


def data(folder, source="u v w", target="a b"):
    for language, words in (("de", source), ("en", target)):
        dictionary(words).save(str(folder / f"dict.{language}.txt"))
    (folder / "train.de-en.de.idx").touch()
    return SimpleNamespace(data=f"{folder}:elsewhere", source_lang="de", target_lang="en")


def check(made, cfg=None, state=None):
    cfg = SimpleNamespace(data="gone", source_lang="de", target_lang="en") if cfg is None else cfg
    check_dictionaries(made, "the start model mle.pt", cfg, {"epoch": 1, **(state or {})})


def test_equal_words_pass(tmp_path):
    cfg = data(tmp_path)
    check(task(), cfg)
    cfg.source_lang = cfg.target_lang = None  # fairseq finds them in the folder
    check(task(), cfg)
    check(task(), state={"EsrlTranslationTask": {ENTRY: fingerprints(task())}})


@pytest.mark.parametrize(
    "made, words",
    [
        (task(target="b a"), "2 of the 6 words of the target side.*number 4 is 'a' there and 'b'"),
        (task(source="u v x"), "1 of the 7 words of the source side.*number 6 is 'w' there"),
    ],
)
def test_other_words_of_the_same_number_are_refused(made, words, tmp_path):
    cfg = data(tmp_path)
    with pytest.raises(EsrlError, match=f"mle.pt.*{words}.*--srcdict"):
        check(made, cfg)
    cfg.source_lang = cfg.target_lang = None
    with pytest.raises(EsrlError, match=words):
        check(made, cfg)
    with pytest.raises(EsrlError, match="other words, or in another order"):
        check(made, cfg, {"EsrlTranslationTask": {ENTRY: fingerprints(task())}})


def test_what_is_not_known_passes(tmp_path):
    check(task())
    check(task(), data(tmp_path, source="u v w x"))  # of another model: sizes differ
    check(task(), SimpleNamespace(data=None))


def test_dictionary_of_a_language_model(tmp_path):
    dictionary("a b").save(str(tmp_path / "dict.txt"))
    cfg = SimpleNamespace(data=str(tmp_path))
    check(task(source="a b"), cfg)
    with pytest.raises(EsrlError, match="dict.txt"):
        check(task(source="b a", target="b a"), cfg)
