"""Tiny sequence-to-sequence models of transformers with random weights, data for them, and what
the library itself computes. Skips whoever imports it where the extra ``hf`` is not installed."""

import numpy as np
import pytest
import torch
from fairseq.data import LanguagePairDataset
from helpers import _Lines

from esrl_fairseq.huggingface import library as loading
from esrl_fairseq.huggingface.families import source_words, target_words
from esrl_fairseq.huggingface.seq2seq import HfSeq2Seq, HfSeq2SeqConfig
from esrl_fairseq.huggingface.words import make_dictionary

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d", "<end>", "en", "fr"]
START, PAD, END, UNK, STOP, EN, FR = 0, 1, 2, 3, 8, 9, 10  # ids
BART = dict(
    vocab_size=len(WORDS), d_model=8, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=12,
    decoder_ffn_dim=12, encoder_attention_heads=2, decoder_attention_heads=2, init_std=0.6,
    max_position_embeddings=24, bos_token_id=START, pad_token_id=PAD, eos_token_id=END,
    decoder_start_token_id=END, forced_eos_token_id=None, dropout=0.1,
)  # fmt: skip
T5 = dict(
    vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
    relative_attention_num_buckets=4, relative_attention_max_distance=6, initializer_factor=1.0,
    pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
)  # fmt: skip
FAMILIES = {
    # mode of transformers, its options, those of `generate`
    "m2m_100": ("m2m_100", dict(scale_embedding=True), dict(forced_bos_token_id=FR)),
    "mbart50": ("mbart", dict(scale_embedding=True), dict(forced_bos_token_id=FR)),
    "mbart25": ("mbart", dict(decoder_start_token_id=FR), {}),
    "marian": (
        "marian",
        dict(decoder_start_token_id=PAD, scale_embedding=True),
        dict(bad_words_ids=[[PAD]], forced_eos_token_id=END),
    ),
    "marian two": (
        "marian",
        dict(
            decoder_start_token_id=PAD,
            share_encoder_decoder_embeddings=False,
            decoder_vocab_size=9,
            tie_word_embeddings=False,
        ),
        dict(bad_words_ids=[[PAD]]),
    ),
    "t5": ("t5", T5, {}),
    "t5 1.1": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {}),
    "t5 untied": ("t5", {**T5, "tie_word_embeddings": False}, {}),
    "mt5": ("mt5", T5, {}),
    "umt5": ("umt5", T5, {}),
    "bart": ("bart", {}, dict(forced_bos_token_id=START)),
    "pegasus": ("pegasus", dict(decoder_start_token_id=PAD, scale_embedding=True), {}),
    "fsmt": (
        "fsmt",
        dict(
            langs=["en", "fr"],
            src_vocab_size=len(WORDS),
            vocab_size=9,  # the target's
            scale_embedding=True,
        ),
        {},
    ),
    "blenderbot": ("blenderbot", dict(decoder_start_token_id=START), {}),
    "blenderbot small": ("blenderbot-small", dict(decoder_start_token_id=START), {}),
    "plbart": ("plbart", dict(decoder_start_token_id=FR), {}),
    "ends": ("bart", {}, dict(eos_token_id=[END, STOP], suppress_tokens=[UNK], min_length=3)),
}
"""Each family, with what is special about it."""


def save(folder, name="bart", seed=2, tokenizer=True, **more):
    """A model and its tokenizer in `folder`, whose path is returned as text."""
    kind, options, generation = FAMILIES[name]
    options = {**({} if options.get("d_kv") else BART), **options, **more}
    config = transformers.AutoConfig.for_model(kind, **options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        if "untied" in name:  # as checkpoints with a head of their own are loaded
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        for part, parameter in model.named_parameters():
            if "norm" in part and part.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.requires_grad and "embed_positions" not in part:
                parameter.normal_(0, 0.4 if kind == "fsmt" else 0.6)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
            model.final_logits_bias[0, PAD] -= 4  # beams of `generate` do not renormalise
            model.final_logits_bias[0, END] += 6 if kind == "mbart" else 2
    for setting, value in generation.items():
        setattr(model.generation_config, setting, value)
    model.save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_tokenizer():
    """Words are split at spaces; it knows no languages."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<end>", "en", "fr"],
    )


def dictionaries(folder):
    config = loading.load_config(folder)
    return make_dictionary(source_words(config)), make_dictionary(target_words(config))


def build(folder, **options):
    return HfSeq2Seq(HfSeq2SeqConfig(hf_model=folder, **options), *dictionaries(folder))


def load(folder):
    """transformers' own."""
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


SOURCES = [[4, 5, 6, 2], [7, 2], [9, 4, 4, 1, 6, 5, 2], [5, 2, 9], [6, 7, 5, 2], [4, 2]]
"""Tokens of sources; the fourth one does not end with the end token."""


def make_dataset(folder, sources=SOURCES, targets=None):
    """Sentence pairs, sources padded on the left."""
    source, target = dictionaries(folder)
    targets = [[4, 5], [6], [5, 7, 7], [6, 4], [4], [7, 5]] if targets is None else targets

    def words(ids, whole):
        return torch.tensor([*[0] * whole, *(i + source.nspecial for i in ids), source.eos()])

    left = [words(x[:-1] if x[-1] == END else x, x[-1] != END) for x in sources]
    sides = [_Lines(left), _Lines([words(ids, False) for ids in targets])]
    return LanguagePairDataset(
        sides[0], sides[0].sizes, source, sides[1], sides[1].sizes, target, shuffle=False
    )


def sources_of(batch):
    """Tokens of a batch's sources, whose longest come first."""
    return [SOURCES[i] for i in batch["id"].tolist()]


def starts(own):
    """What the decoder reads before a text, by the library's settings."""
    settings = own.generation_config
    first = settings.decoder_start_token_id
    first = own.config.decoder_start_token_id if first is None else first
    forced = settings.forced_bos_token_id
    return [first] if forced is None else [first, forced]


def own_logits(own, sources, rows):
    """The library's logits before each token of rows and behind the last, [rows, steps, words].

    One token a step with its cache, as in ``generate``.

    Args:
        sources, rows: lists of ids, equally many.
    """
    width = max(map(len, sources))
    ids = torch.tensor([x + [PAD] * (width - len(x)) for x in sources])
    mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in sources])
    encoded = own.get_encoder()(input_ids=ids, attention_mask=mask)
    before = starts(own)
    longest = max(map(len, rows))
    read = torch.tensor([before + x + [END] * (longest - len(x)) for x in rows])
    found, cache = [], None
    name = loading.cache_argument(own)
    for step in range(read.size(1)):
        output = own(
            attention_mask=mask,
            encoder_outputs=encoded,
            decoder_input_ids=read[:, step : step + 1],
            use_cache=True,
            **{name: cache},
        )
        cache = output[name]
        found.append(output.logits[:, -1])
    return torch.stack(found[len(before) - 1 :], 1)


def own_policy(own, logits, min_len=0):
    """Log-probabilities over the dictionary, [rows, steps, words], of the library's logits."""
    settings = own.generation_config
    ends = settings.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    never = {word for (word,) in settings.bad_words_ids or []} | set(settings.suppress_tokens or [])
    dictionary = make_dictionary(logits.size(-1))
    scores = logits.new_full((*logits.shape[:-1], len(dictionary)), -np.inf)
    words = [i for i in range(logits.size(-1)) if i not in {*ends, *never}]
    places = torch.tensor(words) + dictionary.nspecial
    scores = scores.index_copy(-1, places, logits[..., words])
    end = logits[..., ends].exp().sum(-1, keepdim=True).log()
    scores = scores.index_copy(-1, torch.tensor([dictionary.eos()]), end)
    scores[:, :min_len, dictionary.eos()] = -np.inf
    return scores.log_softmax(-1)


def own_scores(own, sources, rows, **options):
    """Log-probability of each token that was chosen, [rows, longest], 0 elsewhere."""
    dictionary = make_dictionary(1)
    ids = [
        [i - dictionary.nspecial for i in row[:length].tolist() if i != dictionary.eos()]
        for row, length in zip(rows.tokens, rows.lengths.tolist())
    ]
    logits = own_logits(own, [sources[i] for i in rows.input_index.tolist()], ids)
    policy = own_policy(own, logits, **options)
    found = policy[:, : rows.tokens.size(1)].gather(2, rows.tokens.unsqueeze(2)).squeeze(2)
    return found.masked_fill(~rows.scored(), 0)
