"""Sources and targets of ``--arch hf_seq2seq`` as words, by each family's own tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from tiny_seq2seq import FAMILIES, build, dictionaries, save
from tiny_tokenizers import CASES, make, transformers

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.__main__ import make_parser
from esrl_fairseq.huggingface.bpe import HfTokenizer
from esrl_fairseq.huggingface.generation import policy_of
from esrl_fairseq.huggingface.languages import codes_of, start_of
from esrl_fairseq.huggingface.pair_data import write_pairs
from esrl_fairseq.huggingface.pairs import WHOLE, PairWords
from esrl_fairseq.huggingface.seq2seq import HfSeq2Seq, HfSeq2SeqConfig
from esrl_fairseq.huggingface.words import make_dictionary

SOURCE, TARGET = "a cat sees the dog", "der hund schläft"


def make_folder(folder, name, **more):
    """The configuration beside the tokenizer of a case; no weights. The tokenizer, languages."""
    family, tokenizer, languages = make(folder, name)
    kind, options, settings = FAMILIES[family]
    size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1) + 110
    if "vocab_size" in more:
        size = more.pop("vocab_size")
    ends = tokenizer.convert_tokens_to_ids("</s>")
    options = {**options, "vocab_size": size, "eos_token_id": ends, **more}
    settings = dict(settings)
    if languages[0]:
        settings.pop("forced_bos_token_id", None)
        options.setdefault("decoder_start_token_id", 2)
    transformers.AutoConfig.for_model(kind, **options).save_pretrained(folder)
    transformers.GenerationConfig(eos_token_id=ends, **settings).save_pretrained(folder)
    return tokenizer, languages


@pytest.mark.parametrize("name", CASES)
def test_words_are_the_tokenizers(name, tmp_path):
    """What is read and written is what the library's own examples read and write."""
    tokenizer, languages = make_folder(tmp_path, name)
    where = str(tmp_path)
    words = PairWords(where, *languages)
    if languages[0]:
        tokenizer.src_lang, tokenizer.tgt_lang = languages
    expected = tokenizer(SOURCE)["input_ids"]
    first, *rest = words.encode(SOURCE).split()
    found = rest if first == WHOLE else [first, *rest, words.end[0]]
    assert list(map(int, found)) == expected
    assert words.decode_source(words.encode(SOURCE).removeprefix(f"{WHOLE} ")) == SOURCE

    kind = library.load_config(where).model_type
    language = start_of(where, kind, languages[1]) if languages[1] else start_of(where, kind, None)
    start, *forced = policy_of(words.settings, where, language).start
    if languages[1]:  # mBART-25 starts with it, the others are forced to write it
        token = codes_of(tokenizer)[languages[1]]
        assert [start, *forced] == ([token] if name == "mbart25" else [2, token])
    target = words.encode_target(TARGET)
    if name == "fsmt":  # whose own tokenizer has no targets' vocabulary
        table = {piece: i for i, piece in tokenizer.decoder.items()}
        pieces = [f"{x}</w>" if end else x for w in TARGET.split() for x, end in ends_of(w)]
        assert list(map(int, target.split())) == [table[piece] for piece in pieces]
        assert words.decode(target) == TARGET
        return
    labels = tokenizer(text_target=TARGET)["input_ids"]
    if name in ("nllb of old", "mbart25"):  # the language stands behind the end
        assert labels.pop() in (start, *forced)
        forced = []
    assert [*forced, *map(int, target.split()), words.end[0]] == labels
    own = [token for token in labels if token not in words.languages]
    assert words.decode(target) == tokenizer.decode(own, skip_special_tokens=True) != ""
    assert words.encode("") == words.encode_target(" ") == ""


def ends_of(word):
    return [(letter, place == len(word) - 1) for place, letter in enumerate(word)]


def test_languages_that_are_not_there(tmp_path):
    """One sentence: none chosen, one that the model does not know, or a tokenizer without any."""
    make_folder(tmp_path / "nllb", "nllb")
    make_folder(tmp_path / "t5", "t5")
    nllb, t5 = str(tmp_path / "nllb"), str(tmp_path / "t5")
    with pytest.raises(EsrlError, match="knows 202 languages: choose one with --hf-source-lang"):
        PairWords(nllb).encode(SOURCE)
    with pytest.raises(EsrlError, match="'deu_Latin' .did you mean 'deu_Latn'"):
        PairWords(nllb, "eng_Latn", "deu_Latin").encode_target(TARGET)
    with pytest.raises(EsrlError, match="202 languages, and 'de' is none of them"):
        PairWords(nllb, endings=("en", "de")).encode_target(TARGET)
    assert PairWords(nllb, endings=("eng_Latn", "deu_Latn")).encode_target(TARGET)
    with pytest.raises(EsrlError, match="knows no languages: leave out --hf-target-lang de"):
        PairWords(t5, None, "de").encode_target(TARGET)


def data(*words):
    """``python -m esrl_fairseq.huggingface data``."""
    write_pairs(make_parser().parse_args(["data", *map(str, words)]))


def test_data(tmp_path):
    """Dictionaries of both sides, and each file's lines; nothing is written where a language or an
    ending is wrong."""
    make_folder(tmp_path / "model", "marian two", vocab_size=23, decoder_vocab_size=24)
    for side, text in (("en", SOURCE), ("de", TARGET)):
        (tmp_path / f"train.{side}").write_text(f"{text}\n\n{text} {text}\n", encoding="utf-8")
    files = [tmp_path / "train.en", tmp_path / "train.de"]
    common = ["--hf-model", tmp_path / "model", "--out", tmp_path / "out"]
    for more, sentence in [
        (["-s", "en"], "give -s and -t"),
        (["-s", "en", "-t", "fr"], r"train.de ends neither with .en nor with .fr"),
        (["-s", "en", "-t", "de", "--chat"], "--chat is for causal LMs"),
        (["-s", "en", "-t", "de", "--hf-source-lang", "en"], "knows no languages: leave out"),
    ]:
        with pytest.raises(EsrlError, match=sentence):
            data(*common, *more, *files)
        assert not (tmp_path / "out").exists()
    data(*common, "-s", "en", "-t", "de", *files)
    words = PairWords(str(tmp_path / "model"))
    for side, encode, size in (("en", words.encode, 23), ("de", words.encode_target, 24)):
        dictionary = (tmp_path / "out" / f"dict.{side}.txt").read_text().splitlines()
        assert dictionary == [f"{i} 1" for i in range(size)] or len(dictionary) == size
        lines = (tmp_path / "out" / f"train.{side}").read_text().splitlines()
        text = (tmp_path / f"train.{side}").read_text(encoding="utf-8").splitlines()
        assert lines == [encode(line) for line in text] and lines[1] == ""
    data(*common[:3], tmp_path / "alone", "-s", "en", "-t", "de", files[0])
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == [
        *["dict.de.txt", "dict.en.txt", "train.en"]
    ]


def test_bpe(tmp_path):
    """For fairseq-interactive: sources are encoded, outputs decoded."""
    make_folder(tmp_path, "nllb")
    given = SimpleNamespace(hf_tokenizer=str(tmp_path), hf_source_lang="eng_Latn")
    words, bpe = PairWords(str(tmp_path), "eng_Latn", "deu_Latn"), HfTokenizer(given)
    assert bpe.encode(SOURCE) == words.encode(SOURCE)
    assert bpe.decode(words.encode_target(TARGET)) == TARGET
    with pytest.raises(EsrlError, match="choose one with --hf-source-lang"):
        HfTokenizer(SimpleNamespace(hf_tokenizer=str(tmp_path))).encode(SOURCE)


class TestRefusals:
    """One sentence where a model does not fit."""

    def refused(self, where, **options):
        cfg = TranslationConfig()
        cfg.source_lang, cfg.target_lang = "en", "fr"
        words = options.pop("words", None) or dictionaries(where)
        task = TranslationTask(cfg, *words)
        with pytest.raises(EsrlError) as caught:
            HfSeq2Seq.build_model(HfSeq2SeqConfig(hf_model=where, **options), task)
        return str(caught.value)

    def test_kinds(self, tmp_path):
        for kind, sentence in [
            ("llama", "choose --arch hf_causal_lm with --task esrl_language_modeling"),
            ("bert", "is of the kind bert, but --arch hf_seq2seq takes bart"),
        ]:
            folder = tmp_path / kind
            transformers.AutoConfig.for_model(kind, vocab_size=11).save_pretrained(folder)
            assert sentence in self.refused(str(folder), words=[make_dictionary(11)] * 2)
        words = [make_dictionary(11)] * 2
        assert "needs --hf-model" in self.refused("", words=words)

    def test_tasks(self, tmp_path):
        cfg = HfSeq2SeqConfig(hf_model=save(tmp_path, "bart"))
        with pytest.raises(EsrlError, match="texts from texts: choose --task esrl_translation"):
            HfSeq2Seq.build_model(cfg, SimpleNamespace())

    def test_words(self, tmp_path):
        folder = save(tmp_path, "fsmt")
        source, target = dictionaries(folder)
        for words in ((source, source), (target, target)):
            assert "is not that of the model" in self.refused(folder, words=words)

    def test_settings(self, tmp_path):
        folder = save(tmp_path, "bart")
        settings = transformers.GenerationConfig.from_pretrained(folder)
        settings.bad_words_ids = [[4, 5]]
        settings.save_pretrained(folder)
        assert "forbids the tokens [4, 5] in a row" in self.refused(folder)
        settings.bad_words_ids = None
        settings.save_pretrained(folder)
        assert "knows no languages: leave out --hf-target-lang fr" in self.refused(
            folder, hf_target_lang="fr"
        )

    def test_unknown_words(self, tmp_path):
        model = build(save(tmp_path, "bart"))
        unknown = torch.tensor([[5, model.encoder.dictionary.unk(), 2]])
        with pytest.raises(EsrlError, match="the data have unknown words"):
            model.encoder(unknown)
        with pytest.raises(EsrlError, match="the data have unknown words"):
            model(torch.tensor([[8, 2]]), torch.tensor([2]), unknown[:, [2, 1]])
