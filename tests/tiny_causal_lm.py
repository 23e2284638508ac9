"""Tiny causal LMs of transformers with random weights, their tokenizer and data. Skips whoever
imports it where the extra ``hf`` is not installed."""

import numpy as np
import pytest
import torch
from helpers import _Lines

from esrl_fairseq.data.prompts import prompt_dataset
from esrl_fairseq.huggingface.words import make_dictionary

transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "<end>", "d"]
BOS, EOS, END = 1, 2, 6  # ids
DICTIONARY = make_dictionary(len(WORDS))
POSITIONS = 32


def save(folder, kind="llama", seed=1, tokenizer=True, **options):
    """A model and its tokenizer in `folder`, whose path is returned as text."""
    defaults = dict(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, intermediate_size=16, initializer_range=0.5,
        max_position_embeddings=POSITIONS, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **{**defaults, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_tokenizer():
    """Words are split at spaces; conversations have a template."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    result = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = "<s> d {{ messages[0].content }} <end>"
    return result


def index(words):
    """Places in the dictionary of the tokens of a text."""
    return [DICTIONARY.nspecial + WORDS.index(word) for word in words.split()]


LINES = ["a b b", "b d a c a", "a", "c a a <end> b", "d b", "a a"]


def make_prompts(prompt_tokens=3, lines=LINES):
    """Prompts of 1 to 3 tokens behind the start symbol; of two lines something is left."""
    lines = _Lines([torch.tensor([*index(line), DICTIONARY.eos()]) for line in lines])
    return prompt_dataset(lines, DICTIONARY, prompt_tokens, DICTIONARY.bos(), shuffle=False)


def policy(library, tokens, ends=(EOS,), min_len=0, drawn=0, temperature=1.0):
    """Log-probabilities over the dictionary after `tokens`, places in it, by transformers alone."""
    special = {DICTIONARY.bos(): BOS, DICTIONARY.eos(): EOS}
    ids = [special.get(i, i - DICTIONARY.nspecial) for i in tokens]
    logits = library(input_ids=torch.tensor([ids])).logits[0, -1]
    scores = torch.full((len(DICTIONARY),), -np.inf)
    words = [i for i in range(len(WORDS)) if i not in ends]
    scores = scores.index_copy(0, torch.tensor(words) + DICTIONARY.nspecial, logits[words])
    if drawn >= min_len:
        end = logits[list(ends)].exp().sum().log().view(1)
        scores = scores.index_copy(0, torch.tensor([DICTIONARY.eos()]), end)
    return (scores / temperature).log_softmax(-1)


def policy_scores(library, batch, rows, **options):
    """Log-probability and entropy of each row, and log-probabilities of each chosen token."""
    temperature = options.pop("temperature", torch.ones(len(rows)))
    sums, entropies, table = [], [], []
    for r in range(len(rows)):
        prompt = batch["net_input"]["src_tokens"][rows.input_index[r]]
        prompt = prompt[prompt.ne(DICTIONARY.pad())].tolist()
        tokens = rows.tokens[r, : rows.lengths[r]].tolist()
        own, entropy = [], torch.zeros(())
        for t in range(len(tokens) - int(rows.truncated[r])):
            step = policy(
                library, [*prompt, *tokens[:t]], drawn=t, temperature=temperature[r], **options
            )
            own.append(step[tokens[t]])
            entropy = entropy - torch.xlogy(step.exp(), step.exp()).sum()
        own += [torch.zeros(())] * (rows.tokens.size(1) - len(own))
        table.append(torch.stack(own))
        sums.append(table[-1].sum())
        entropies.append(entropy)
    return torch.stack(sums), torch.stack(entropies), torch.stack(table)
