"""fairseq's own Transformer as a Hugging Face folder: the same scores, ids and text, or one
sentence."""

import gzip
import random
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import SOURCE, TARGET, dictionary, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_texts import DATA

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import exported_families as families
from esrl_fairseq.huggingface import from_fairseq

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")

BEFORE = dict(encoder_normalize_before=True, decoder_normalize_before=True)
LEARNED = dict(encoder_learned_pos=True, decoder_learned_pos=True)
SHARED = dict(source=TARGET, share_all_embeddings=True)
OTHER_SIZES = dict(
    encoder_layers=1, decoder_layers=3, encoder_ffn_embed_dim=12, decoder_attention_heads=4,
    max_source_positions=20, max_target_positions=12,
)  # fmt: skip
MULTI30K = DATA / "multi30k"


def exported(model, folder):
    """Its family, and what a user loads."""
    family = families.choose(model)
    from_fairseq.convert(family, model).save_pretrained(folder)
    return family, transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("m2m_100", {**BEFORE, **SHARED}),
        ("m2m_100", {**BEFORE, "source": TARGET}),
        ("m2m_100", {**BEFORE, "source": TARGET, "target": SOURCE}),
        ("m2m_100", {**BEFORE, **SHARED, **OTHER_SIZES, "no_scale_embedding": True}),
        ("fsmt", SHARED),
        ("fsmt", {}),
        ("fsmt", {"share_decoder_input_output_embed": False, **OTHER_SIZES}),
        ("fsmt", {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "dropout": 0.1}),
        ("blenderbot", {**BEFORE, **LEARNED, **SHARED, **OTHER_SIZES}),
        ("blenderbot", {**BEFORE, **SHARED, "no_token_positional_embeddings": True}),
        ("blenderbot", {**BEFORE, **SHARED, "decoder_learned_pos": True}),
        ("mbart", {**BEFORE, **LEARNED, **SHARED, "layernorm_embedding": True}),
        ("bart", {**LEARNED, **SHARED, **OTHER_SIZES, "layernorm_embedding": True}),
        ("bart", {"source": TARGET, "layernorm_embedding": True}),
        ("bart", {"source": TARGET, "arch": "bart"}),
    ],
)
def test_same_scores(kind, options, tmp_path):
    model = make_model(**options).eval()
    family, found = exported(model, tmp_path)
    assert family.kind == kind
    assert from_fairseq.apart(model, found) < 1e-5
    other = make_model(**{**options, "seed": 2}).eval()
    with pytest.raises(EsrlError, match=f"as {kind} its scores are .* off"):
        from_fairseq.apart(other, found)


@pytest.mark.parametrize("name", sorted(families.ACTIVATIONS))
def test_activations(name, tmp_path):
    model = make_model(**SHARED, activation_fn=name).eval()
    assert from_fairseq.apart(model, exported(model, tmp_path)[1]) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "lstm"}, "has a LSTM"),
        ({"arch": "lightconv"}, "has a LightConv"),
        ({"adaptive_softmax_cutoff": "3,5"}, r"has a AdaptiveSoftmax \(decoder.adaptive_softmax"),
        ({"no_cross_attention": True, "cross_self_attention": True}, "no cross-attention of"),
        ({**LEARNED}, "layer norms behind the layers"),
        ({"encoder_normalize_before": True}, "before the layers of one side"),
        ({**BEFORE, "no_decoder_final_norm": True}, "no last layer norm"),
        ({"decoder_embed_dim": 16, "decoder_output_dim": 16}, "different widths"),
        ({"activation_fn": "relu", "quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4}, "quant"),
        ({**BEFORE}, "one vocabulary, but this one reads 7 words and writes 6"),
    ],
)
def test_what_no_family_has(options, words):
    model = make_model(**options).eval()
    with pytest.raises(EsrlError, match=words) as error:
        from_fairseq.convert(families.choose(model), model)
    assert "CTranslate2" in str(error.value)


OPTIONS = {
    **{name: st.booleans() for name in (*BEFORE, *LEARNED, "layernorm_embedding")},
    **{name: st.booleans() for name in ("share_all_embeddings", "no_scale_embedding")},
    **{name: st.booleans() for name in ("no_decoder_final_norm", "no_cross_attention")},
    "no_token_positional_embeddings": st.booleans(),
    "share_decoder_input_output_embed": st.booleans(),
    "activation_fn": st.sampled_from(["relu", "gelu", "relu_squared"]),
    "decoder_layers": st.integers(1, 2),
    "decoder_embed_dim": st.sampled_from([8, 8, 8, 12]),
    "encoder_attention_heads": st.sampled_from([1, 2]),
    "max_source_positions": st.sampled_from([9, 32]),
    "source": st.sampled_from([SOURCE, TARGET]),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.fixed_dictionaries(OPTIONS))
def test_any_model_is_the_same_or_refused(options):
    if options["share_all_embeddings"]:
        options.update(source=TARGET, decoder_embed_dim=8)
    if options["no_cross_attention"]:
        options["cross_self_attention"] = True
    model = make_model(**options, decoder_output_dim=options["decoder_embed_dim"]).eval()
    try:
        found = from_fairseq.convert(families.choose(model), model)
    except EsrlError as error:
        assert "famil" in str(error) and "CTranslate2" in str(error)
        return
    assert from_fairseq.apart(model, found) < 1e-5


def test_the_search_is_that_of_fairseq_generate(tmp_path):
    """Greedy, of random models, most of whose outputs are ended at the limit."""
    from fairseq.sequence_generator import SequenceGenerator

    for seed, options in enumerate(({**BEFORE, **SHARED}, SHARED, {}), 1):
        model = make_model(**options, seed=seed, scale=1.0, max_target_positions=12).eval()
        found = exported(model, tmp_path / str(seed))[1]
        source, mask, _ = from_fairseq.make_batch(model, rows=12)
        sample = {"net_input": {"src_tokens": source, "src_lengths": mask.sum(1)}}
        search = SequenceGenerator([model], TARGET, beam_size=1, max_len_b=200)
        own = [best[0]["tokens"].tolist() for best in search.generate([model], sample)]
        outputs = found.generate(input_ids=source, attention_mask=mask, num_beams=1)
        ids = [[i for i in row.tolist()[1:] if i != TARGET.pad()] for row in outputs]
        assert ids == own


class TestTokenizer:
    """Against subword-nmt, SentencePiece and fairseq's dictionary."""

    def tokenizer(self, sides, files, kind, folder):
        """Saved and loaded as a user does, from a folder alone."""
        task = Namespace(source_dictionary=sides[0], target_dictionary=sides[-1])
        model = Namespace(
            encoder=Namespace(max_source_positions=32), decoder=Namespace(max_target_positions=32)
        )
        found = from_fairseq.make_tokenizer(task, [Path(file) for file in files], kind, model)
        found.save_pretrained(folder)
        for file in files:
            Path(file).rename(f"{file}.gone")
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    @pytest.mark.parametrize("version", ["0.2", "0.1", "fastBPE"])
    def test_codes(self, version, tmp_path):
        """Half of the sub-words are in no dictionary, and some words come from other texts."""
        from fairseq.data import Dictionary
        from fairseq.data.data_utils import post_process
        from subword_nmt.apply_bpe import BPE
        from subword_nmt.learn_bpe import learn_bpe

        draw, codes = random.Random(3), tmp_path / "codes"
        signs = "abcde&;é。"
        words = ["".join(draw.choices(signs, k=draw.randint(1, 7))) for _ in range(60)]
        text = [" ".join(draw.choices(words, k=6)) for _ in range(200)]
        with open(codes, "w", encoding="utf-8") as file:
            learn_bpe(text, file, 80)
        lines = codes.read_text(encoding="utf-8").splitlines()[1:]
        if version == "0.1":
            lines = [line.replace("</w>", " </w>", 1) for line in lines if "</w>" not in line]
            lines += [f"{a} </w>" for a in "abc"]
            codes.write_text("#version: 0.1\n" + "\n".join(lines) + "\n", encoding="utf-8")
        with open(codes, encoding="utf-8") as file:
            own = BPE(file)
        if version == "fastBPE":
            codes.write_text("".join(f"{line} 7\n" for line in lines), encoding="utf-8")
        dictionary = Dictionary()
        for line in text[:20]:
            for piece in own.process_line(line).split():
                if draw.random() < 0.5 or piece in dictionary.symbols:
                    dictionary.add_symbol(piece)
        tokenizer = self.tokenizer([dictionary], [codes], "subword_nmt", tmp_path / "out")
        others = ["", "  ", "a  b\tc\u00a0d ", "</s> <unk> a<pad>", "x"]
        unknown = 0
        for line in [*text, *others]:
            ids = dictionary.encode_line(
                own.process_line(line), add_if_not_exist=False, append_eos=True
            )
            unknown += int((ids == dictionary.unk()).sum())
            assert tokenizer(line)["input_ids"] == ids.tolist()
            printed = post_process(dictionary.string(ids), "subword_nmt")
            assert tokenizer.decode(ids, skip_special_tokens=True) == printed
        assert unknown > 100
        assert tokenizer.get_special_tokens_mask([5, 3])[:] == [0, 0, 1]

    def test_pieces(self, tmp_path):
        """Two models and dictionaries: the source's for texts, the target's for outputs."""
        spm = pytest.importorskip("sentencepiece")
        from fairseq.data import Dictionary
        from fairseq.data.data_utils import post_process

        draw, sides, models = random.Random(4), [], []
        for side, signs in enumerate(("abcdef", "uvwxyz")):
            words = ["".join(draw.choices(signs, k=draw.randint(1, 6))) for _ in range(40)]
            text = [" ".join(draw.choices(words, k=5)) for _ in range(200)]
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(text), model_prefix=str(tmp_path / f"m{side}"),
                vocab_size=40, minloglevel=2,
            )  # fmt: skip
            models.append(tmp_path / f"m{side}.model")
            own, dictionary = spm.SentencePieceProcessor(model_file=str(models[-1])), Dictionary()
            for line in text[:20]:
                for piece in own.encode(line, out_type=str):
                    dictionary.add_symbol(piece)
            sides.append((own, dictionary, text))
        dictionaries = [side[1] for side in sides]
        tokenizer = self.tokenizer(dictionaries, models, "sentencepiece", tmp_path / "out")
        for (own, dictionary, text), name in zip(sides, ("text", "text_target")):
            for line in [*text, "abc xyz ü"]:
                pieces = " ".join(own.encode(line, out_type=str))
                ids = dictionary.encode_line(pieces, add_if_not_exist=False)
                assert tokenizer(**{name: line})["input_ids"] == ids.tolist()
        ids = [int(i) for i in ids[:-1]] + [3, 2]
        printed = post_process(dictionaries[1].string(torch.tensor(ids)), "sentencepiece")
        assert tokenizer.decode(ids, skip_special_tokens=True) == printed

    def test_subwords_of_another_kind(self, tmp_path):
        (tmp_path / "codes").write_text("#version: 0.2\na b\n")
        pieces, words = dictionary("▁a b ▁c"), dictionary("a@@ b c")
        for side, kind, option in (
            (pieces, "subword_nmt", "--bpe-codes"),
            (words, "sentencepiece", "--sentencepiece"),
        ):
            with pytest.raises(EsrlError, match=f"{option} does not fit the dictionaries"):
                self.tokenizer([TARGET, side], [tmp_path / "codes"], kind, tmp_path / "out")

    def test_files_that_are_none(self, tmp_path):
        (tmp_path / "empty").write_text("")
        (tmp_path / "text").write_text("this is a text\n")
        for name, kind in (("gone", "subword_nmt"), ("empty", "subword_nmt"),
                           ("text", "subword_nmt"), ("text", "sentencepiece")):  # fmt: skip
            with pytest.raises(EsrlError, match=name):
                self.tokenizer([TARGET], [tmp_path / name], kind, tmp_path / "out")


@pytest.mark.skipif(not (MULTI30K / "mle" / "mle.pt").is_file(), reason="needs the Multi30k model")
def test_multi30k(tmp_path):
    """A trained model: scores to rounding, and the ids of every source of the test set."""
    import sacremoses
    from subword_nmt.apply_bpe import BPE

    import esrl_fairseq  # noqa: F401 (fairseq can then load checkpoints)

    folder = MULTI30K / "mle"
    for language in ("de", "en"):
        dictionary = (folder / "dict.txt").read_text(encoding="utf-8")
        (tmp_path / f"dict.{language}.txt").write_text(dictionary, encoding="utf-8")
    (tmp_path / "train.de-en.de.idx").touch()  # names the languages
    codes = folder / "bpe.codes"
    model, task = from_fairseq.load(str(folder / "mle.pt"), tmp_path)
    family, found = exported(model, tmp_path / "out")
    assert family.kind == "fsmt" and from_fairseq.apart(model, found) < 1e-4
    tokenizer = from_fairseq.make_tokenizer(task, [codes], "subword_nmt", model)
    with open(codes, encoding="utf-8") as file:
        own = BPE(file)
    moses = sacremoses.MosesTokenizer("de")
    with gzip.open(MULTI30K / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        lines = [moses.tokenize(line.strip(), return_str=True) for line in file]
    words = task.source_dictionary
    for line in lines:
        ids = words.encode_line(own.process_line(line), add_if_not_exist=False).tolist()
        assert tokenizer(line)["input_ids"] == ids
        if words.unk() not in ids:
            assert tokenizer.decode(ids, skip_special_tokens=True) == line
