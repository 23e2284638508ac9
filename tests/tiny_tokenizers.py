"""Tokenizers of transformers' sequence-to-sequence models, made of a few words, as their own
classes make them."""

import json
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = {
    "en": ["a cat sees the dog", "the dog sleeps", "a dog sees a cat today"],
    "de": ["eine katze sieht den hund", "der hund schläft", "ein hund sieht heute eine katze"],
}
PIECES = sorted({f"▁{word}" for lines in TEXTS.values() for x in lines for word in x.split()})
CHARACTERS = sorted({"▁", *"".join(PIECES)})


def sentencepiece_model(folder, name, texts):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_prefix=str(folder / name), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
    return folder / f"{name}.model", [processor.id_to_piece(i) for i in range(len(processor))]


def write(path, table):
    path.write_text(json.dumps(table))
    return str(path)


def numbered(words):
    return {word: place for place, word in enumerate(dict.fromkeys(words))}


def scored(special):
    """A Unigram vocabulary."""
    words = {**dict.fromkeys(special, 0.0), **dict.fromkeys(CHARACTERS, -9.0)}
    return list({**words, **dict.fromkeys(PIECES, -2.0)}.items())


def marian(folder, separate=False):
    source, left = sentencepiece_model(folder, "source", TEXTS["en"])
    target, right = sentencepiece_model(folder, "target", TEXTS["de"])
    special, pad = ["</s>", "<unk>"], ["<pad>"]
    if separate:
        return transformers.MarianTokenizer(
            str(source), str(target), write(folder / "v.json", numbered(special + left + pad)),
            target_vocab_file=write(folder / "t.json", numbered(special + right[::-1] + pad)),
            separate_vocabs=True, source_lang="en", target_lang="de",
        )  # fmt: skip
    vocabulary = write(folder / "v.json", numbered(special + left + right + [">>de<<"] + pad))
    return transformers.MarianTokenizer(
        str(source), str(target), vocabulary, source_lang="en", target_lang="de"
    )


def m2m_100(folder):
    model, pieces = sentencepiece_model(folder, "spm", TEXTS["en"] + TEXTS["de"])
    vocabulary = numbered(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    return transformers.M2M100Tokenizer(write(folder / "vocab.json", vocabulary), str(model))


def nllb(folder, legacy=False):
    # Merges of whole words, from the left.
    merges, words = [], set()
    for piece in PIECES:
        for end in range(1, len(piece)):
            pair = piece[:end], piece[end]
            merges += [pair] if pair not in merges else []
            words.add(piece[: end + 1])
    vocabulary = numbered(["<s>", "<pad>", "</s>", "<unk>", *CHARACTERS, *sorted(words)])
    return transformers.NllbTokenizer(vocab=vocabulary, merges=merges, legacy_behaviour=legacy)


def mbart50(folder):
    return transformers.MBart50Tokenizer(
        vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *scored([])]
    )


def mbart25(folder):
    return transformers.MBartTokenizer(vocab=scored(["<s>", "<pad>", "</s>", "<unk>"]))


def t5(folder):
    return transformers.T5Tokenizer(vocab=scored(["<pad>", "</s>", "<unk>"]), extra_ids=2)


def pegasus(folder):
    special = ["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk>"]
    return transformers.PegasusTokenizer(vocab=scored(special), offset=5)


def bart(folder):
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = numbered(["<s>", "<pad>", "</s>", "<unk>", *sorted(alphabet), "<mask>"])
    return transformers.BartTokenizer(vocab=vocabulary, merges=[])


def fsmt(folder):
    pytest.importorskip("sacremoses")
    letters = sorted("".join(CHARACTERS))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    sides = []
    for side, extra in (("source", letters), ("target", letters[::-1])):
        table = numbered([*special, *extra, *(f"{x}</w>" for x in extra)])
        sides.append(write(folder / f"{side}.json", table))
    merges = folder / "merges.txt"
    merges.write_text("")
    return transformers.FSMTTokenizer(["en", "de"], *sides, str(merges))


CASES = {
    # its model in tiny_seq2seq.FAMILIES, what makes the tokenizer, languages of source and target
    "m2m_100": ("m2m_100", m2m_100, ("en", "de")),
    "nllb": ("m2m_100", nllb, ("eng_Latn", "deu_Latn")),
    "nllb of old": ("m2m_100", lambda x: nllb(x, True), ("eng_Latn", "deu_Latn")),
    "mbart50": ("mbart50", mbart50, ("en_XX", "de_DE")),
    "mbart25": ("mbart25", mbart25, ("en_XX", "de_DE")),
    "marian": ("marian", marian, (None, None)),
    "marian two": ("marian two", lambda x: marian(x, True), (None, None)),
    "t5": ("t5", t5, (None, None)),
    "pegasus": ("pegasus", pegasus, (None, None)),
    "bart": ("bart", bart, (None, None)),
    "fsmt": ("fsmt", fsmt, (None, None)),
}


def make(folder, name):
    """The tokenizer, saved in the folder, and options of a model for it."""
    family, make_one, languages = CASES[name]
    parts = Path(folder) / "parts"
    parts.mkdir(parents=True)
    tokenizer = make_one(parts)
    tokenizer.save_pretrained(folder)
    return family, tokenizer, languages
