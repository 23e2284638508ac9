"""Tiny models, data and tasks whose every output sequence can be listed, and plain references.

The functions named ``plain_…`` are what the package is compared with: one row at a time, one step
at a time, no cache, no padding.
"""

import itertools
from argparse import Namespace
from dataclasses import replace

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.models import lightconv, lstm, lstm_lm, transformer_lm
from fairseq.models.bart.model import BARTModel, bart_base_architecture
from fairseq.models.transformer import TransformerModel
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows, distinct_rows
from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.data.prompts import prompt_dataset
from esrl_fairseq.language_task import EsrlLanguageModelingConfig, EsrlLanguageModelingTask
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.task import EsrlTranslationConfig, EsrlTranslationTask

ARCHS = ("transformer", "lstm", "lightconv")
STAGE_TWO = (*ARCHS, "bart")  # the last one's forward takes apart what the decoder gives
LANGUAGE_MODELS = ("transformer_lm", "lstm_lm")
SEED = 7  # of the sampler


def dictionary(words):
    """A dictionary of fairseq's four special symbols and `words`."""
    result = Dictionary()
    for word in words.split():
        result.add_symbol(word)
    return result


SOURCE = dictionary("u v w")
TARGET = dictionary("a b")
PAD, EOS, UNK = TARGET.pad(), TARGET.eos(), TARGET.unk()
A, B = TARGET.index("a"), TARGET.index("b")
DRAWN = [word for word in range(len(TARGET)) if word not in (PAD, EOS)]  # what may precede EOS


def make_model(arch="transformer", seed=1, scale=0.5, source=SOURCE, target=TARGET, **options):
    """A model of about 2,500 parameters, far from uniform, with dropout in training."""
    args = dict(
        encoder_embed_dim=8, encoder_ffn_embed_dim=8, encoder_attention_heads=2, encoder_layers=2,
        decoder_embed_dim=8, decoder_ffn_embed_dim=8, decoder_attention_heads=2, decoder_layers=2,
        encoder_conv_dim=8, decoder_conv_dim=8, encoder_kernel_size_list=[3, 3],
        decoder_kernel_size_list=[3, 3], encoder_conv_type="lightweight", weight_softmax=True,
        decoder_conv_type="lightweight", decoder_out_embed_dim=8, dropout=0.3,
        attention_dropout=0.3, max_source_positions=32, max_target_positions=32,
        share_decoder_input_output_embed=True, criterion="esrl",
    )  # fmt: skip
    args = Namespace(**{**args, **options})
    if arch == "lstm":
        lstm.base_architecture(args)
    if arch == "bart":
        args.share_all_embeddings = False
        bart_base_architecture(args)
    task = Namespace(source_dictionary=source, target_dictionary=target)
    classes = {
        "lstm": lstm.LSTMModel, "lightconv": lightconv.LightConvModel, "bart": BARTModel,
    }  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = classes.get(arch, TransformerModel).build_model(args, task)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, scale)
        for embedding in (model.encoder.embed_tokens, model.decoder.embed_tokens):
            embedding.weight[PAD] = 0
    return model


class _Lines:
    """What LanguagePairDataset needs of a side: items and sizes."""

    def __init__(self, items):
        self.items = items
        self.sizes = np.array([len(item) for item in items])
        self.supports_prefetch = False

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def make_dataset(inputs=6, seed=3):
    """Sentence pairs of 1 to 4 words and EOS; sources are padded on the left."""
    draw = np.random.default_rng(seed)

    def side(words):
        lengths = draw.permutation(np.arange(inputs) % 4 + 1)
        return _Lines([torch.tensor([*draw.choice(words, n), EOS]) for n in lengths])

    source = side([SOURCE.index(word) for word in "uvw"])
    target = side([A, B])
    return LanguagePairDataset(
        source, source.sizes, SOURCE, target, target.sizes, TARGET, shuffle=False
    )


def make_batch(dataset=None, ids=None):
    """A batch of `ids` (all by default), longest source first as fairseq sorts them."""
    dataset = make_dataset() if dataset is None else dataset
    return dataset.collater([dataset[i] for i in (range(len(dataset)) if ids is None else ids)])


def take(batch, positions):
    """The batch of the inputs at `positions`, in that order, padded as before."""
    picked = {key: _take(value, positions) for key, value in batch.items()}
    picked["ntokens"] = int(picked["target"].ne(PAD).sum())
    return picked


def _take(value, positions):
    if isinstance(value, dict):
        return {key: _take(item, positions) for key, item in value.items()}
    return value[torch.as_tensor(positions)] if torch.is_tensor(value) else len(positions)


def add_padding(batch, columns=3):
    """The same batch with more padding, on the left of sources and on the right of targets."""
    net_input = dict(batch["net_input"])
    net_input["src_tokens"] = _pad(net_input["src_tokens"], (columns, 0))
    net_input["prev_output_tokens"] = _pad(net_input["prev_output_tokens"], (0, columns))
    return {**batch, "net_input": net_input, "target": _pad(batch["target"], (0, columns))}


def _pad(tokens, sides):
    return torch.nn.functional.pad(tokens, sides, value=PAD)


def make_task(dataset=None, store_dir=None, stock=False, **options):
    """The task with its training data in memory; `stock` gives fairseq's own translation task."""
    dataset = make_dataset() if dataset is None else dataset
    cfg = TranslationConfig() if stock else EsrlTranslationConfig()
    cfg.train_subset = "train"
    if not stock:
        cfg.save_dir = store_dir
        cfg.sample_max_len_a, cfg.sample_max_len_b = 0, 3
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    task = (TranslationTask if stock else EsrlTranslationTask)(cfg, SOURCE, TARGET)
    task.datasets["train"] = dataset
    return task


def make_language_model(arch="transformer_lm", seed=1, scale=0.5, **options):
    """A decoder-only model of about 1,000 parameters, as make_model."""
    args = dict(
        decoder_embed_dim=8, decoder_ffn_embed_dim=8, decoder_attention_heads=2, decoder_layers=2,
        decoder_out_embed_dim=8, decoder_hidden_size=8, dropout=0.3, attention_dropout=0.3,
        tokens_per_sample=32, share_decoder_input_output_embed=True, criterion="esrl",
    )  # fmt: skip
    args = Namespace(**{**args, **options})
    module = {"transformer_lm": transformer_lm, "lstm_lm": lstm_lm}[arch]
    kind = {"transformer_lm": "TransformerLanguageModel", "lstm_lm": "LSTMLanguageModel"}[arch]
    getattr(module, "base_lm_architecture", getattr(module, "base_architecture", None))(args)
    task = Namespace(source_dictionary=TARGET, target_dictionary=TARGET, dictionary=TARGET)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(module, kind).build_model(args, task)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, scale)
        model.decoder.embed_tokens.weight[PAD] = 0
    return model


LINES = [[A, B, B], [B, B, A, UNK, A], [A], [B, A, A, B], [UNK, B], [A, A]]


def make_prompts(lines=LINES, prompt_tokens=3, start=EOS):
    """Prompts of 1 to 3 words; of two lines something is left for the reference."""
    lines = _Lines([torch.tensor([*line, EOS]) for line in lines])
    return prompt_dataset(lines, TARGET, prompt_tokens, start, shuffle=False)


def make_language_task(dataset=None, **options):
    """The language modeling task with its training data in memory; samples have up to 3 words."""
    cfg = EsrlLanguageModelingConfig()
    cfg.train_subset, cfg.save_dir, cfg.sample_max_len_b = "train", None, 3
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    task = EsrlLanguageModelingTask(cfg, TARGET)
    task.datasets["train"] = make_prompts() if dataset is None else dataset
    return task


def make_criterion(task, **options):
    """The criterion for `task`, in training mode; its α is large enough to see rounding."""
    options.setdefault("risk_alpha", 0.5)
    return EsrlCriterion(EsrlCriterionConfig(**options), task)


def make_rows(sequences, input_index, truncated=None, multiplicity=None):
    """Rows of the given token lists, each with its EOS."""
    width = max(map(len, sequences))
    n = len(sequences)
    return Rows(
        tokens=torch.tensor([list(s) + [PAD] * (width - len(s)) for s in sequences]),
        lengths=torch.tensor([len(s) for s in sequences]),
        input_index=torch.as_tensor(input_index),
        truncated=torch.as_tensor(truncated if truncated is not None else [False] * n),
        multiplicity=torch.as_tensor(multiplicity if multiplicity is not None else [1] * n),
    )


def without_duplicates(rows):
    """Each distinct sequence of an input once, with its multiplicity."""
    keep, multiplicity = distinct_rows(rows)
    return replace(rows[keep], multiplicity=multiplicity)


def known_of(rows):
    """What stage one would know of rows that a test made up: nothing worth knowing."""
    zeros = torch.zeros(len(rows))
    return Scores(zeros, zeros, rows.scored().sum(1), zeros, torch.zeros(rows.tokens.shape))


def coefficients(rewards, rows_index, inputs, alpha, baseline, multiplicity):
    """REINFORCE's of each row: α m (r − b) / n."""
    draws = torch.zeros(inputs).to(rewards).index_add(0, rows_index, multiplicity.to(rewards))
    return alpha * multiplicity * (rewards - baseline) / draws[rows_index]


def every_row(limit, min_len, inputs=1):
    """All sequences that can be sampled with at most `limit` words, for each input."""
    bodies = [
        body for n in range(min_len, limit + 1) for body in itertools.product(DRAWN, repeat=n)
    ]
    sequences = [[*body, EOS] for body in bodies]
    truncated = [len(body) == limit for body in bodies]
    index = torch.arange(inputs).repeat_interleave(len(bodies))
    return make_rows(sequences * inputs, index, truncated * inputs)


def plain_scores(model, batch, rows, min_len=0, temperature=1.0):
    """log p and summed entropy of each row: one row, one step, no cache, no padding."""
    log_probs, entropies = [], []
    for r in range(len(rows)):
        source = batch["net_input"]["src_tokens"][rows.input_index[r]]
        source = source[source.ne(PAD)].unsqueeze(0)
        tokens = rows.tokens[r, : rows.lengths[r]].tolist()
        log_prob = entropy = torch.zeros(())
        for t in range(len(tokens) - int(rows.truncated[r])):
            step = plain_step(model, source, tokens[:t], min_len, temperature)
            log_prob = log_prob + step[tokens[t]]
            entropy = entropy - torch.xlogy(step.exp(), step.exp()).sum()
        log_probs.append(log_prob)
        entropies.append(entropy)
    return torch.stack(log_probs), torch.stack(entropies)


def plain_token_scores(model, batch, rows, min_len=0):
    """log p of each chosen token, [rows, length], 0 elsewhere; one step at a time."""
    found = []
    for r in range(len(rows)):
        source = batch["net_input"]["src_tokens"][rows.input_index[r]]
        source = source[source.ne(PAD)].unsqueeze(0)
        tokens = rows.tokens[r].tolist()
        chosen = int(rows.lengths[r]) - int(rows.truncated[r])
        steps = [plain_step(model, source, tokens[:t], min_len)[tokens[t]] for t in range(chosen)]
        steps += [torch.zeros(())] * (len(tokens) - chosen)
        found.append(torch.stack(steps))
    return torch.stack(found)


def plain_step(model, source, prefix, min_len=0, temperature=1.0):
    """The policy's log-probabilities [words] after `prefix`, for one source [1, length]."""
    if hasattr(model, "encoder"):
        decoder_out = model(
            src_tokens=source,
            src_lengths=torch.tensor([source.size(1)]),
            prev_output_tokens=torch.tensor([[EOS, *prefix]]),
        )
    else:  # the source is a prompt
        decoder_out = model(src_tokens=torch.tensor([[*source[0].tolist(), *prefix]]))
    scores = decoder_out[0][0, -1]
    never = torch.zeros(len(TARGET), dtype=torch.bool)
    never[PAD] = True
    never[EOS] = len(prefix) < min_len
    return (scores / temperature).masked_fill(never, -torch.inf).log_softmax(-1)


def gradients(model, scalar):
    """d scalar / d parameters, all in one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)]
    )


def chi_square_p(observed, probabilities):
    """p-value of Pearson's test; cells with fewer than 5 expected are merged."""
    observed = torch.as_tensor(observed, dtype=torch.float64)
    expected = torch.as_tensor(probabilities, dtype=torch.float64) * observed.sum()
    assert not observed[expected == 0].any(), "something impossible was drawn"
    small = expected < 5
    cells = [
        torch.cat([x[~small], x[small].sum().view(1)]) if small.any() else x
        for x in (observed, expected)
    ]
    used = cells[1] > 0
    statistic = ((cells[0] - cells[1])[used] ** 2 / cells[1][used]).sum()
    freedom = torch.tensor((int(used.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
