"""``--arch hf_causal_lm`` against transformers itself: both stages, vocabulary, text, errors."""

import os
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_lines import USER_DIR, free_port
from fairseq.sequence_generator import SequenceGenerator
from helpers import SEED, chi_square_p, gradients, make_batch, make_criterion, make_rows, take
from omegaconf import OmegaConf
from tiny_causal_lm import (
    BOS,
    DICTIONARY,
    END,
    EOS,
    POSITIONS,
    WORDS,
    index,
    make_prompts,
    make_tokenizer,
    policy,
    policy_scores,
    save,
    transformers,
)

from esrl_fairseq.core.fingerprint import fingerprint
from esrl_fairseq.core.sampling import row_uniforms
from esrl_fairseq.core.sequences import append_rows
from esrl_fairseq.data.prompts import check_references
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.huggingface import library
from esrl_fairseq.huggingface.__main__ import export_model, read_checkpoint, write_data
from esrl_fairseq.huggingface.bpe import HfTokenizer
from esrl_fairseq.huggingface.model import HfCausalLM, HfCausalLMConfig
from esrl_fairseq.huggingface.words import Words, make_dictionary
from esrl_fairseq.language_task import EsrlLanguageModelingConfig, EsrlLanguageModelingTask
from esrl_fairseq.rescoring import row_scorer
from esrl_fairseq.rescoring.agreement import stage_difference
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.rescoring.standard import sample_with_graph
from esrl_fairseq.rewards import base
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.sampling import branching, draws
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import DecoderSteps

PAD, STOP = DICTIONARY.pad(), DICTIONARY.eos()
ROOT = USER_DIR.parent
COUNTS = [5, 1, 0, 3, 2, 4]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 2.0])
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 3},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
}
"""Each kind, with what is special about it; prompts and rows are longer than the window."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of all kinds, and of one with two tokens that end a text."""
    root = tmp_path_factory.mktemp("hf")
    found = {kind: save(root / kind, kind, **special) for kind, special in KINDS.items()}
    found["ends"] = save(root / "ends")
    config = transformers.GenerationConfig.from_pretrained(root / "ends")
    config.eos_token_id = [EOS, END]
    config.save_pretrained(root / "ends")
    return found


def build(folder, **options):
    return HfCausalLM(HfCausalLMConfig(hf_model=folder, **options), DICTIONARY)


def load(folder, dtype=torch.float32):
    """transformers' own, uncached."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.config.use_cache = False
    return model.eval()


def make_sampler(model, max_len_a=0.5, max_len_b=2, min_len=1):
    return RowSampler(
        [model], DICTIONARY, max_len_a=max_len_a, max_len_b=max_len_b, min_len=min_len
    )


def prompts():
    """All prompts in one batch, padded on the right."""
    return make_batch(make_prompts())


def ragged_rows():
    """Lengths 1 to 5, truncated rows, an input without rows, equal rows."""
    texts = ["a b b c", "b", "a <unk> b c", "d", "b <s>", "a", "a", "c c b"]
    cut = [False, False, True, False, False, True, False, True]
    rows = [[*index(text), STOP] for text in texts]
    return make_rows(rows, [0, 0, 1, 1, 3, 4, 5, 5], cut)


@pytest.mark.parametrize("kind", [*KINDS, "ends"])
@torch.no_grad()
def test_probabilities_are_the_models(folders, kind):
    """Of every word at every place; those that end a text are one, and nothing else is added."""
    model, own = build(folders[kind]).eval(), load(folders[kind])
    ends = (EOS, END) if kind == "ends" else (EOS,)
    tokens = [DICTIONARY.bos(), *index("a d b c a <end> b"), STOP, *index("a b")]
    scores = model(torch.tensor([tokens]))[0]
    probs = model.get_normalized_probs((scores,), log_probs=False)[0]
    assert torch.allclose(probs.sum(-1), torch.ones(len(tokens)), atol=1e-6)
    never = [DICTIONARY.bos(), PAD, DICTIONARY.unk(), *(DICTIONARY.nspecial + end for end in ends)]
    assert not probs[:, never].any() and torch.isfinite(scores).all()
    ids = [BOS, *(i - 4 for i in tokens[1:8]), EOS, *(i - 4 for i in tokens[9:])]
    expected = own(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    others = [i for i in range(len(WORDS)) if i not in ends]
    assert torch.allclose(probs[:, 4:][:, others], expected[:, others], atol=1e-6)
    assert torch.allclose(probs[:, STOP], expected[:, list(ends)].sum(-1), atol=1e-6)
    last = policy(own, tokens, ends).exp()
    assert torch.allclose(probs[-1], last, atol=1e-6) and last.max() < 0.9


class TestStageOne:
    @pytest.mark.parametrize("min_len", [0, 2])
    @pytest.mark.parametrize("kind", [*KINDS, "ends"])
    @torch.no_grad()
    def test_rows_equal_a_replay_by_transformers(self, folders, kind, min_len):
        """With the same uniform numbers, without cache, padding or batch, the same is drawn."""
        model, own, batch = build(folders[kind]), load(folders[kind]), prompts()
        ends = (EOS, END) if kind == "ends" else (EOS,)
        rows = make_sampler(model, min_len=min_len).sample_rows(batch, COUNTS, TEMPERATURES, SEED)
        found = zip(rows.input_index.tolist(), rows.tokens.tolist(), rows.lengths.tolist())
        found = [(i, tokens[:length]) for i, tokens, length in found]
        expected = []
        for i, count in enumerate(COUNTS):
            length = int(batch["net_input"]["src_lengths"][i])
            prompt = batch["net_input"]["src_tokens"][i, :length].tolist()
            limit = int(0.5 * length) + 2
            for uniforms in row_uniforms(SEED, [int(batch["id"][i])], [count], [limit + 1]):
                tokens = []
                while len(tokens) < limit and tokens[-1:] != [STOP]:
                    options = {"drawn": len(tokens), "temperature": float(TEMPERATURES[i])}
                    step = policy(own, [*prompt, *tokens], ends, min_len, **options)
                    cdf = step.double().exp().cumsum(0)
                    place = (cdf <= uniforms[len(tokens)].double() * cdf[-1]).sum()
                    tokens.append(int(place))
                expected.append((i, tokens + [STOP] * (tokens[-1] != STOP)))
        assert found == expected
        assert 0 < rows.truncated.sum() < len(rows) and not rows.tokens.eq(4 + EOS).any()

    @torch.no_grad()
    def test_frequencies(self, folders):
        """Chi-square of first words over the whole vocabulary, at three temperatures."""
        draws, batch = 20_000, make_batch(make_prompts(), [0, 2, 4])
        temperatures = np.float32([0.6, 1.0, 2.0])
        sampler = make_sampler(build(folders["ends"]), 0, 1, 0)
        rows = sampler.sample_rows(batch, [draws] * 3, temperatures, SEED)
        own = load(folders["ends"])
        for i, temperature in enumerate(temperatures.tolist()):
            length = int(batch["net_input"]["src_lengths"][i])
            prompt = batch["net_input"]["src_tokens"][i, :length].tolist()
            expected = policy(own, prompt, (EOS, END), temperature=temperature).exp()
            found = rows.tokens[rows.input_index == i, 0].bincount(minlength=len(DICTIONARY))
            assert chi_square_p(found, expected) > 1e-3

    @pytest.mark.parametrize("kind", ["llama", "mistral"])
    def test_the_general_path_draws_the_same(self, folders, kind, monkeypatch):
        """Also where the batch is compacted and reordered all the time; many rows, long ones."""
        sampler, batch = make_sampler(build(folders[kind]), 0, 8), prompts()
        draw = [batch, [12] * 6, TEMPERATURES, SEED]
        monkeypatch.setattr(draws, "COMPACT_AT", 0.0)
        own = sampler.sample_rows(*draw)
        monkeypatch.setattr(branching, "decoding_steps", DecoderSteps)
        general = sampler.sample_rows(*draw)
        assert torch.equal(own.tokens, general.tokens) and len(own.lengths.unique()) > 4
        monkeypatch.setattr(draws, "COMPACT_AT", 1.1)
        assert torch.equal(sampler.sample_rows(*draw).tokens, own.tokens)

    @pytest.mark.parametrize("kind", ["llama", "mistral"])
    def test_fixed_rows_draw_the_same(self, folders, kind):
        sampler, batch = make_sampler(build(folders[kind]), 0, 8), prompts()
        expected = sampler.sample_rows(batch, [12] * 6, TEMPERATURES, SEED)
        sampler.strategy = FIXED_ROWS
        found = sampler.sample_rows(batch, [12] * 6, TEMPERATURES, SEED)
        assert torch.equal(found.tokens, expected.tokens)

    def test_batch_and_padding_do_not_matter(self, folders):
        sampler, batch = make_sampler(build(folders["llama"])), prompts()
        whole = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
        padded = {**batch, "net_input": dict(batch["net_input"])}
        tokens = torch.nn.functional.pad(batch["net_input"]["src_tokens"], (0, 2), value=PAD)
        padded["net_input"]["src_tokens"] = tokens
        again = sampler.sample_rows(padded, COUNTS, TEMPERATURES, SEED)
        assert torch.equal(again.tokens, whole.tokens)
        for order in ([0, 2, 4], [5, 1, 3]):
            counts = np.array(COUNTS)[order]
            part = sampler.sample_rows(take(batch, order), counts, TEMPERATURES[order], SEED)
            for place, i in enumerate(order):
                found = part.tokens[part.input_index == place]
                expected = whole.tokens[whole.input_index == i][:, : found.size(1)]
                assert torch.equal(found, expected)

    def test_the_cache_and_what_is_read(self, folders):
        """What all prompts have is read at once, then one token a step; states are kept."""
        model, batch = build(folders["llama"]).eval(), prompts()
        sizes, forward = [], model.decoder.model.model.forward
        name = model.decoder.cache_name

        def counted(input_ids, **arguments):
            assert type(arguments[name]) is transformers.DynamicCache
            sizes.append((*input_ids.shape, arguments[name].get_seq_length()))
            return forward(input_ids=input_ids, **arguments)

        model.decoder.model.model.forward = counted
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that of a name which will be gone, for one
            make_sampler(model, 0, 4).sample_rows(batch, [50] * 6, np.ones(6, np.float32), SEED)
        assert sizes[0] == (6, 2, 0) and sizes[1][0] > 6
        assert [size[1:] for size in sizes[1:]] == [(1, n) for n in range(2, len(sizes) + 1)]

    @pytest.mark.parametrize("beam", [1, 4])
    @torch.no_grad()
    def test_beam_search(self, folders, beam):
        """Its scores are those of what it found; greedy output is that of plain steps."""
        task = make_task(sample_max_len_a=0.5, sample_max_len_b=2)
        model, own, batch = build(folders["ends"]).eval(), load(folders["ends"]), prompts()
        tokens, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
        for end in (None, 1):  # then with a token that ends texts in each prompt, as in chats
            if end is not None:
                tokens[:, end] = DICTIONARY.nspecial + END
            ends, found = (EOS, END), task.best_hypotheses(model, batch, beam)
            for i, length in enumerate(lengths.tolist()):
                prompt, expected = tokens[i, :length].tolist(), []
                while len(expected) < int(0.5 * length) + 2 and expected[-1:] != [STOP]:
                    step = policy(own, [*prompt, *expected], ends, 1, len(expected))
                    expected.append(int(step.argmax()))
                assert beam > 1 or found[i] == expected + [STOP] * (expected[-1] != STOP)
        generator = SequenceGenerator(
            [model], DICTIONARY, beam_size=beam, max_len_b=8, normalize_scores=False
        )
        batch = make_batch(make_prompts(), [0, 1, 3])
        for i, hypotheses in enumerate(task.inference_step(generator, [model], batch)):
            assert len(hypotheses) == beam
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"].tolist()
                prefix = batch["net_input"]["src_tokens"][i, :1].tolist()
                steps = [
                    policy(own, [*prefix, *tokens[:t]], ends)[tokens[t]] for t in range(len(tokens))
                ]
                assert float(hypothesis["score"]) == pytest.approx(float(sum(steps)), abs=1e-4)


class TestStageTwo:
    @pytest.mark.parametrize("min_len", [0, 1])
    @pytest.mark.parametrize("kind", [*KINDS, "ends"])
    def test_equals_transformers(self, folders, kind, min_len, monkeypatch):
        """Log-probabilities of rows and tokens, at a temperature, too; entropies, gradients."""
        model, own = build(folders[kind]), load(folders[kind])
        batch, rows = prompts(), ragged_rows()
        options = {"min_len": min_len, "ends": (EOS, END) if kind == "ends" else (EOS,)}
        tau, weights = torch.full((len(rows),), 0.6), torch.linspace(-1, 2, len(rows))
        expected, entropy, tokens = policy_scores(own, batch, rows, **options)
        tempered, *_ = policy_scores(own, batch, rows, temperature=tau, **options)
        slope = gradients(own, (weights * (expected + tempered)).sum())
        assert slope.norm() > 1
        for piece_tokens, max_tokens in [(2048, 4096), (6, 4096), (1, 4096), (2048, 1), (6, 9)]:
            monkeypatch.setattr(row_scorer, "PIECE_TOKENS", piece_tokens)
            monkeypatch.setattr(row_scorer, "HEAD_POSITIONS", piece_tokens // 2 + 1)
            scores = rescore(
                model,
                batch["net_input"],
                rows,
                PAD,
                STOP,
                min_len,
                max_tokens=max_tokens,
                temperature=tau,
                tokens=True,
            )
            assert torch.allclose(scores.log_probs, expected, rtol=1e-5, atol=1e-5)
            assert torch.allclose(scores.tempered, tempered, rtol=1e-5, atol=1e-5)
            assert torch.allclose(scores.token_log_probs, tokens, rtol=1e-5, atol=1e-5)
            assert torch.allclose(scores.entropy, entropy, rtol=1e-5, atol=1e-5)
            found = gradients(model, (weights * (scores.log_probs + scores.tempered)).sum())
            assert torch.allclose(found, slope, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("max_tokens", [4096, 1])
    def test_checkpointed_layers(self, folders, max_tokens):
        """--checkpoint-activations: same gradient, with --rescoring-dropout, where it works."""
        found = []
        for options in ({}, {"checkpoint_activations": True}):
            model, batch = build(folders["llama"], **options).train(), prompts()
            layers = [layer.gradient_checkpointing for layer in model.decoder.model.model.layers]
            assert layers == [bool(options)] * 2
            scores = rescore(
                model,
                batch["net_input"],
                ragged_rows(),
                PAD,
                STOP,
                dropout=True,
                max_tokens=max_tokens,
            )
            found.append(gradients(model, scores.log_probs.sum()))
        assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
        with pytest.raises(EsrlError, match="checkpoint-activations"):
            standard(model, prompts(), cached=True)

    @pytest.mark.parametrize("cached", [True, False])
    def test_standard_sampling_equals_two_stages(self, folders, cached):
        """Rows, scores and gradients, through the cache's graph."""
        model, batch = build(folders["mistral"]).train(), prompts()
        drawn = make_sampler(model).sample_rows(batch, COUNTS, TEMPERATURES, SEED)
        given = append_rows(drawn, batch["target"], PAD)
        expected = rescore(model, batch["net_input"], given, PAD, STOP, 1).log_probs
        rows, scores, references = standard(model, batch, cached)
        assert torch.equal(rows.tokens, drawn.tokens)
        found = torch.cat([scores.log_probs, references.log_probs])
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        weights = torch.linspace(-1, 2, len(found))
        slopes = [gradients(model, (weights * x).sum()) for x in (found, expected)]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4) and slopes[0].norm() > 1


def standard(model, batch, cached):
    return sample_with_graph(
        model,
        batch,
        make_sampler(model),
        COUNTS,
        TEMPERATURES,
        SEED,
        cached=cached,
        references=batch["target"],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_that_of_transformers(folders, dtype):
    """Bit for bit, far from the start; nothing is infinite, so that entropies are numbers."""
    model = build(folders["llama"]).to(dtype).eval()
    rotary = model.decoder.model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32 and next(model.parameters()).dtype == dtype
    words = torch.arange(POSITIONS) % len(WORDS)
    scores = model(words[None] + 4)[0][0]
    expected = load(folders["llama"], dtype)(input_ids=words[None]).logits[0]
    others = [i for i in range(len(WORDS)) if i != EOS]
    assert torch.equal(scores[:, 4:][:, others], expected[:, others])
    assert torch.equal(scores[:, STOP], expected[:, EOS])
    result = rescore(model, prompts()["net_input"], ragged_rows(), PAD, STOP, 1)
    assert torch.isfinite(result.log_probs).all() and torch.isfinite(result.entropy).all()
    make_sampler(model).sample_rows(prompts(), COUNTS, TEMPERATURES, SEED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_agree(folders, kind, dtype):
    """Also of a model in half precision, whose own rounding is left out of it."""
    model = build(folders[kind]).to(dtype)
    assert stage_difference(model, prompts(), make_sampler(model, 0, 20)) < 1e-4
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp(folders, dtype):
    """Stage one draws; stage two's numbers and gradients are near those without."""
    model, batch, rows = build(folders["llama"]).eval(), prompts(), ragged_rows()
    found = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=on):
            make_sampler(model).sample_rows(batch, COUNTS, TEMPERATURES, SEED)
            scores = rescore(model, batch["net_input"], rows, PAD, STOP, 1, max_tokens=9)
        found.append((scores, gradients(model, scores.log_probs.sum())))
    (expected, slope), (scores, found_slope) = found
    for name in ("log_probs", "entropy"):
        one = getattr(scores, name)
        assert one.dtype == torch.float32
        assert torch.allclose(one, getattr(expected, name), atol=0.1)
    assert (found_slope - slope).norm() < 0.1 * slope.norm()


def make_task(**options):
    cfg = EsrlLanguageModelingConfig()
    cfg.train_subset, cfg.save_dir, cfg.sample_max_len_b, cfg.add_bos_token = "train", None, 3, True
    for name, value in options.items():
        setattr(cfg, name, value)
    task = EsrlLanguageModelingTask(cfg, DICTIONARY)
    task.datasets["train"] = make_prompts()
    return task


class Seen(Reward):
    """Remembers texts; the share of the letter a."""

    name, range, needs_references = "seen", (0.0, 1.0), False
    texts: list = []

    def signature(self):
        return self.name

    def score(self, sources, references, hypotheses, row_input):
        Seen.texts.append((list(sources), references, list(hypotheses)))
        return [text.count("a") / (len(text) + 1) for text in hypotheses]


class TestCriterion:
    @pytest.fixture(autouse=True)
    def seen(self, monkeypatch):
        monkeypatch.setitem(base._REWARDS, Seen.name, Seen)
        Seen.texts = []

    def run(self, folder, task_options=None, **options):
        """Task, model and criterion, in the order of fairseq-train."""
        task = make_task(**(task_options or {}))
        model = task.build_model(
            OmegaConf.create({"model": {"_name": "hf_causal_lm", "hf_model": folder}}).model
        )
        criterion = make_criterion(task, reward="seen", finetune_from_model=None,
                                   restore_file="checkpoint_last.pt", **options)  # fmt: skip
        task.rl.baseline.push([0.3, 0.1])
        task.open_store()
        return task, model, criterion

    def test_rewards_see_text(self, folders):
        """Not numbers; with the prompt, and without special tokens."""
        task, _, criterion = self.run(folders["llama"], {"reward_text": "whole"})
        batch = make_batch(make_prompts(), [1, 3])
        rows = make_rows([[*index("b <s> a"), STOP], [*index("d"), STOP]], [0, 1])
        criterion.score_rows(batch, rows)
        sources, references, hypotheses = Seen.texts[0]
        assert sources == ["b d a", "c a a"] and hypotheses == ["b d a b a", "c a a d"]
        assert list(map(list, references)) == [["b d a c a"], ["c a a <end> b"]]

    def test_detokenizer_follows(self, folders):
        _, _, criterion = self.run(folders["llama"], reward_detokenizer="moses")
        criterion.score_rows(
            make_batch(make_prompts(), [2]), make_rows([[*index("d c"), STOP]], [0])
        )
        assert Seen.texts[0][0] == ["a"] and Seen.texts[0][2] == ["d c"]

    @pytest.mark.parametrize("objective", ["fused", "ppo"])
    def test_kl_is_measured_from_the_model_of_the_library(self, folders, objective):
        """0 before the first update; afterwards the mean of log p − log p_library."""
        task, model, criterion = self.run(folders["ends"], objective=objective, kl_weight=0.3)
        batch, state = prompts(), torch.get_rng_state()
        task.begin_epoch(1, model)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(3)
        loss, _, log = criterion(model.train(), batch)
        assert abs(log["kl"]) < 1e-4
        *_, plain = self.run(folders["ends"], objective=objective)
        torch.manual_seed(3)
        assert torch.allclose(loss, plain(model, batch)[0], atol=1e-4)

        task, model, criterion = self.run(folders["ends"], kl_weight=0.3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.2)
        torch.manual_seed(3)
        rows, _ = criterion.sample_rows(model, batch, task.plan(batch))
        torch.manual_seed(3)
        _, _, log = criterion(model.train(), batch)
        own = load(folders["ends"])
        log_ref, *_ = policy_scores(own, batch, rows, ends=(EOS, END), min_len=1)
        log_p = rescore(model, batch["net_input"], rows, PAD, STOP, 1).log_probs
        expected = float(((log_p - log_ref) * rows.multiplicity).sum().detach())
        assert log["kl"] == pytest.approx(expected, rel=1e-4) and expected > 0.1
        assert task.rl.kl.reference == fingerprint(build(folders["ends"]).state_dict())

    def test_start_symbol(self, folders):
        with pytest.raises(EsrlError, match=r"begin with a start token.*\(id 1\): add --add-bos"):
            self.run(folders["llama"], {"add_bos_token": False})

    def test_other_tasks(self, folders):
        with pytest.raises(EsrlError, match="choose --task esrl_language_modeling"):
            HfCausalLM.build_model(HfCausalLMConfig(hf_model=folders["llama"]), SimpleNamespace())


class TestWords:
    def test_there_and_back(self, folders):
        """A start token at the beginning is fairseq's to add; special ones are no text."""
        words = Words(folders["llama"])
        assert words.encode("a d b") == "3 7 4" and words.decode("3 7 4") == "a d b"
        assert words.encode("<s> a </s> b") == "3 2 4" and words.decode("3 2 4") == "a b"
        assert words.encode("") == words.decode("") == ""
        assert words.chat("a b") == "7 3 4 6"
        bpe = HfTokenizer(SimpleNamespace(hf_tokenizer=folders["llama"]))
        assert bpe.decode(bpe.encode("c a")) == "c a"
        with pytest.raises(EsrlError, match="'3 x' are not numbers"):
            words.decode("3 x")
        with pytest.raises(EsrlError, match="needs --hf-tokenizer"):
            HfTokenizer(SimpleNamespace(hf_tokenizer=None))

    def test_no_chat_template(self, folders, monkeypatch):
        words = Words(folders["llama"])
        words.tokenizer = make_tokenizer()
        words.tokenizer.chat_template = None
        with pytest.raises(EsrlError, match="no chat template: leave out --chat"):
            words.chat("a")

    def test_data(self, folders, tmp_path):
        (tmp_path / "train").write_text("a b\n\nd\rc\r\n<s> b", encoding="utf-8")
        out = tmp_path / "out"
        write_data(folders["llama"], [tmp_path / "train"], out, chat=False)
        assert (out / "train").read_text() == "3 4\n\n7 5\n4\n"
        dictionary = type(DICTIONARY).load(str(out / "dict.txt"))
        assert dictionary.symbols == DICTIONARY.symbols
        write_data(folders["llama"], [tmp_path / "train"], out, chat=True)
        assert (out / "train").read_text().splitlines()[0] == "7 3 4 6"
        for files, message in [
            ([tmp_path / "gone"], "there is no file"),
            ([tmp_path / "train", out / "train"], "rename it"),
            ([out / "train"], "written over itself"),
        ]:
            with pytest.raises(EsrlError, match=message):
                write_data(folders["llama"], files, out, chat=False)

    def test_more_words_than_the_tokenizer_uses(self, tmp_path):
        """As in models whose vocabulary was rounded up: the model scores them all."""
        folder = save(tmp_path / "model", vocab_size=11)
        (tmp_path / "train").write_text("a\n")
        write_data(folder, [tmp_path / "train"], tmp_path / "out", chat=False)
        dictionary = type(DICTIONARY).load(str(tmp_path / "out" / "dict.txt"))
        HfCausalLM(HfCausalLMConfig(hf_model=folder), dictionary)
        assert len(dictionary) == 4 + 11

    def test_export(self, folders, tmp_path):
        """The weights of a checkpoint, which transformers then loads with the tokenizer."""
        model = build(folders["ends"])
        with torch.no_grad():
            model.decoder.model.lm_head.weight.add_(1.0)
        checkpoint = str(tmp_path / "checkpoint.pt")
        state = {"cfg": {"model": {"hf_model": folders["ends"]}}, "model": model.state_dict()}
        torch.save({**state, "args": None}, checkpoint)
        out = tmp_path / "out"
        export_model(checkpoint, None, out)
        again, tokens = build(str(out)).eval(), torch.tensor([[0, 7, 8]])
        assert torch.equal(again(tokens)[0], model.eval()(tokens)[0])
        assert again.decoder.ends == [EOS, END] and Words(str(out)).encode("a") == "3"
        with pytest.raises(EsrlError, match="not an empty folder"):
            export_model(checkpoint, None, out)
        with pytest.raises(EsrlError, match="give --checkpoint, --hf-model or both"):
            export_model(None, None, tmp_path / "new")
        with pytest.raises(EsrlError, match="trained from another model"):
            export_model(checkpoint, folders["qwen3"], tmp_path / "new")
        with pytest.raises(EsrlError, match="there is no checkpoint"):
            read_checkpoint(str(tmp_path / "gone.pt"))


class TestRefusals:
    def test_references_with_an_end_inside(self):
        """Prompts may have them; references would have no probability."""
        never = {4 + EOS, 4 + END}
        check_references(make_prompts(prompt_tokens=4), "train", never)
        check_references(make_prompts(prompt_tokens=None), "train", never)
        check_references(make_prompts(), "train", {4 + EOS})
        with pytest.raises(EsrlError, match="the reference in train, line 4 has a token that"):
            check_references(make_prompts(), "train", never)

    def test_unknown_words(self, folders):
        model = build(folders["llama"])
        with pytest.raises(EsrlError, match="the data have unknown words"):
            model(torch.tensor([[DICTIONARY.bos(), DICTIONARY.unk()]]))

    def test_dictionary(self, folders):
        cfg = HfCausalLMConfig(hf_model=folders["llama"])
        with pytest.raises(EsrlError, match="of 9 words, is not that of.*from 0 to 7"):
            HfCausalLM(cfg, make_dictionary(9))
        other = type(DICTIONARY)()
        for word in reversed(DICTIONARY.symbols[4:]):
            other.add_symbol(word)
        with pytest.raises(EsrlError, match="of 8 words, is not that of"):
            HfCausalLM(cfg, other)

    @pytest.mark.parametrize("name", [None, ""])
    def test_no_model(self, name):
        with pytest.raises(EsrlError, match="--arch hf_causal_lm needs --hf-model"):
            HfCausalLM.build_model(HfCausalLMConfig(hf_model=name), make_task())

    def test_no_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for where in (str(tmp_path / "gone"), str(tmp_path)):
            with pytest.raises(EsrlError, match="the model of .* cannot be loaded by transf"):
                build(where)
            with pytest.raises(EsrlError, match="the tokenizer of .* cannot be loaded"):
                Words(where)
        with pytest.raises(EsrlError, match="there is no file .*x.gguf: give the path"):
            build(str(tmp_path / "x.gguf"))
        (tmp_path / "x.gguf").write_text("no model")
        with pytest.raises(EsrlError, match=r"the model of .*x\.gguf cannot be loaded"):
            build(str(tmp_path / "x.gguf"))

    def test_a_hub_that_cannot_be_reached(self, folders, tmp_path):
        """What its cache has is loaded, and the rest ends in a sentence; both soon."""
        cached = tmp_path / "home" / "hub" / "models--some--model"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folders["llama"], cached / "snapshots" / ("0" * 40))
        env = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
        env.update(HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
        for name, code in (("some/model", 0), ("some/other", 1)):
            command = [sys.executable, "-m", "esrl_fairseq.huggingface", "export"]
            command += ["--hf-model", name, "--out", str(tmp_path / f"out{code}")]
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == code, done.stderr[-3000:]
            assert "Retry" not in done.stderr and "Traceback" not in done.stderr
        assert (tmp_path / "out0" / "config.json").exists() and not (tmp_path / "out1").exists()
        assert f"{env['HF_ENDPOINT']} cannot be reached, and its cache" in done.stderr

    def test_attention(self, folders):
        model = build(folders["llama"], hf_attention="eager").decoder.model
        assert model.config._attn_implementation == "eager"
        with pytest.raises(EsrlError, match="the model of .* cannot be loaded .*gone"):
            build(folders["llama"], hf_attention="gone")

    def test_no_library(self, folders, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(
            EsrlError, match="pip install 'transformers>=4.57' gguf accelerate .the "
        ):
            build(folders["llama"])

    def test_other_kinds(self, tmp_path):
        config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=9)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
        with pytest.raises(EsrlError, match="is of the kind gpt2, but --arch hf_causal_lm takes l"):
            build(str(tmp_path))

    def test_incomplete(self, tmp_path):
        folder = save(tmp_path)
        model = load(folder)
        state = {name: x for name, x in model.state_dict().items() if "lm_head" not in name}
        model.save_pretrained(folder, state_dict=state)
        with pytest.raises(EsrlError, match="has no weights lm_head.weight"):
            build(folder)

    def test_no_end(self, tmp_path):
        folder = save(tmp_path)
        model = load(folder)
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        with pytest.raises(EsrlError, match="no end-of-text token"):
            build(folder)

    def test_start_without_one(self, tmp_path):
        """The start symbol is read as what ends the text before."""
        folder = save(tmp_path)
        model = load(folder)
        model.config.bos_token_id = None
        model.save_pretrained(folder)
        decoder = build(folder).decoder
        assert decoder.ids[DICTIONARY.bos()] == EOS == library.start_token(decoder.model)
