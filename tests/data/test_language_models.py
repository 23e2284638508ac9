"""Decoder-only policies: prompts, stage one and two behind them, the criterion, validation."""

import itertools

import numpy as np
import pytest
import torch
from fairseq.data import MonolingualDataset, TokenBlockDataset
from helpers import (
    EOS,
    LANGUAGE_MODELS,
    LINES,
    PAD,
    SEED,
    TARGET,
    UNK,
    A,
    B,
    chi_square_p,
    every_row,
    gradients,
    make_batch,
    make_criterion,
    make_language_model,
    make_language_task,
    make_prompts,
    make_rows,
    plain_scores,
    plain_step,
    plain_token_scores,
    take,
)

from esrl_fairseq.core.losses import reinforce_loss
from esrl_fairseq.core.sampling import row_uniforms
from esrl_fairseq.core.sequences import append_rows, decoder_inputs, given_rows
from esrl_fairseq.data.prompts import check_room
from esrl_fairseq.data.text import UNK_IN_REFERENCE
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rescoring import frozen, row_scorer
from esrl_fairseq.rescoring.rescoring import rescore
from esrl_fairseq.rescoring.standard import sample_with_graph
from esrl_fairseq.rewards import base
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.sampling import branching, draws, fixed_rows
from esrl_fairseq.sampling.conditioning import decoder_prefix
from esrl_fairseq.sampling.fixed_rows import FIXED_ROWS
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling.steps import DecoderSteps, TransformerSteps

COUNTS = [5, 1, 0, 3, 2, 4]
TEMPERATURES = np.float32([1.0, 0.6, 1.0, 1.5, 0.8, 2.0])
PIECES = [(2048, 4096), (6, 4096), (1, 4096), (2048, 1), (6, 9)]
"""Positions that stage two takes at once, and those whose activations it keeps."""


class ShareOfA(Reward):
    """Share of the word a among the words of the hypothesis; remembers what it saw."""

    name = "share-of-a"
    range = (0.0, 1.0)
    needs_references = False
    seen: list = []

    def signature(self):
        return self.name

    def score(self, sources, references, hypotheses, row_input):
        ShareOfA.seen.append((list(sources), references, list(hypotheses)))
        return [text.split().count("a") / max(len(text.split()), 1) for text in hypotheses]


@pytest.fixture(autouse=True)
def share_of_a(monkeypatch):
    """Known by its name in these tests only."""
    monkeypatch.setitem(base._REWARDS, ShareOfA.name, ShareOfA)


def make_sampler(model, max_len_a=0.5, max_len_b=2, min_len=1):
    return RowSampler([model], TARGET, max_len_a=max_len_a, max_len_b=max_len_b, min_len=min_len)


def prompts():
    """All prompts in one batch, padded on the right, longest first."""
    return make_batch(make_prompts())


def pad_more(batch, columns=2):
    """The same batch with more padding behind its prompts."""
    net_input = dict(batch["net_input"])
    net_input["src_tokens"] = torch.nn.functional.pad(
        net_input["src_tokens"], (0, columns), value=PAD
    )
    return {**batch, "net_input": net_input}


def by_input(rows, batch):
    """{id: [(tokens, truncated), …]} in the order of the draws."""
    result = {}
    for i, tokens, length, cut in zip(
        rows.input_index.tolist(), rows.tokens.tolist(), rows.lengths.tolist(), rows.truncated
    ):
        result.setdefault(int(batch["id"][i]), []).append((tuple(tokens[:length]), bool(cut)))
    return result


def prompt_of(batch, i):
    tokens = batch["net_input"]["src_tokens"][i]
    return tokens[: int(batch["net_input"]["src_lengths"][i])][None]


def ragged_rows():
    """Lengths 1 to 5, truncated rows, an input without rows, equal rows."""
    return make_rows(
        [[A, B, B, A, EOS], [B, EOS], [A, B, B, A, EOS], [B, EOS], [B, UNK, EOS],
         [A, EOS], [A, EOS], [B, B, A, EOS]],
        [0, 0, 1, 1, 3, 4, 5, 5],
        [False, False, True, False, False, True, False, True],
    )  # fmt: skip


class TestPrompts:
    def test_by_hand(self):
        """The start symbol and up to 3 words; the rest of a line is its reference."""
        batch = prompts()
        tokens = {int(i): t for i, t in zip(batch["id"], batch["net_input"]["src_tokens"].tolist())}
        assert tokens == {
            0: [EOS, A, B, B], 1: [EOS, B, B, A], 2: [EOS, A, PAD, PAD], 3: [EOS, B, A, A],
            4: [EOS, UNK, B, PAD], 5: [EOS, A, A, PAD],
        }  # fmt: skip
        targets = dict(zip(batch["id"].tolist(), batch["target"].tolist()))
        assert targets[1] == [UNK, A, EOS] and targets[3] == [B, EOS, PAD]
        assert all(targets[i] == [EOS, PAD, PAD] for i in (0, 2, 4, 5))

    def test_whole_lines(self):
        """Without a number of words there are no references; the start can be another symbol."""
        dataset = make_prompts(prompt_tokens=None, start=TARGET.bos())
        assert dataset.tgt is None and make_batch(dataset)["target"] is None
        assert dataset[1]["source"].tolist() == [TARGET.bos(), B, B, A, UNK, A]
        assert dataset.src_sizes.tolist() == [4, 6, 2, 5, 3, 3]

    def test_inputs_are_those_of_fairseqs_language_modeling(self):
        """A prompt with its reference is, shifted, the very line that MLE trained on."""
        lines = make_prompts(prompt_tokens=2)
        blocks = TokenBlockDataset(
            [torch.tensor([*line, EOS]) for line in LINES],
            np.array([len(line) + 1 for line in LINES]),
            block_size=None,
            pad=PAD,
            eos=EOS,
            break_mode="eos",
            include_targets=True,
        )
        trained_on = MonolingualDataset(blocks, blocks.sizes, TARGET, targets=["future"])
        for i in range(len(LINES)):
            batch = make_batch(lines, [i])
            rows = given_rows(batch["target"], PAD)
            prefix = decoder_prefix(make_language_model(), batch["net_input"], EOS)
            inputs = decoder_inputs(rows.tokens, rows.lengths, prefix, PAD)
            assert inputs[0].tolist() == trained_on[i]["source"].tolist()

    def test_room(self):
        """What the model reads at most: the start symbol, the prompt and what it writes."""
        check_room(make_prompts(prompt_tokens=None), "train", most=7, least=1)
        with pytest.raises(EsrlError, match="the prompt in train, line 2 has 5 tokens.*most 6"):
            check_room(make_prompts(prompt_tokens=None), "train", most=6, least=1)
        check_room(make_prompts(prompt_tokens=2), "train", most=6, least=1)
        with pytest.raises(EsrlError, match="the line in train, line 2 has 5 tokens"):
            check_room(make_prompts(prompt_tokens=2), "train", most=5, least=1)


class TestStageOne:
    @pytest.mark.parametrize("min_len", [0, 1])
    def test_frequencies_of_whole_sequences(self, min_len):
        """Chi-square over all continuations of prompts of three lengths and temperatures."""
        draws, limit = 20_000, 2
        model, batch = make_language_model(scale=0.4).eval(), make_batch(make_prompts(), [0, 2, 4])
        assert len(set(batch["net_input"]["src_lengths"].tolist())) == 3
        temperatures = [0.6, 1.0, 2.0]
        rows = make_sampler(model, 0, limit, min_len).sample_rows(
            batch, [draws] * 3, np.float32(temperatures), SEED
        )
        space = every_row(limit, min_len)
        places = {tuple(t): k for k, t in enumerate(space.tokens.tolist())}
        tokens = torch.nn.functional.pad(
            rows.tokens, (0, limit + 1 - rows.tokens.size(1)), value=PAD
        )
        for i, temperature in enumerate(temperatures):
            own = tokens[rows.input_index == i]
            found = torch.bincount(
                torch.tensor([places[tuple(t)] for t in own.tolist()]), minlength=len(space)
            )
            space.input_index[:] = i
            log_probs, _ = plain_scores(model, batch, space, min_len, temperature)
            assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)
            assert chi_square_p(found, log_probs.exp()) > 1e-3

    @pytest.mark.parametrize("min_len", [0, 2])
    @pytest.mark.parametrize("arch", LANGUAGE_MODELS)
    @torch.no_grad()
    def test_rows_equal_a_plain_replay(self, arch, min_len):
        """With the same uniform numbers, a pass without cache, padding or batch draws the same."""
        model, batch = make_language_model(arch).eval(), prompts()
        rows = make_sampler(model, min_len=min_len).sample_rows(batch, COUNTS, TEMPERATURES, SEED)
        limits = [int(0.5 * n) + 2 for n in batch["net_input"]["src_lengths"]]
        expected = {}
        for i, (count, limit) in enumerate(zip(COUNTS, limits)):
            sample_id = int(batch["id"][i])
            for uniforms in row_uniforms(SEED, [sample_id], [count], [limit + 1]).double():
                tokens = []
                while len(tokens) < limit and tokens[-1:] != [EOS]:
                    log_probs = plain_step(
                        model, prompt_of(batch, i), tokens, min_len, float(TEMPERATURES[i])
                    )
                    cdf = log_probs.double().exp().cumsum(0)
                    tokens.append(int((cdf <= uniforms[len(tokens)] * cdf[-1]).sum()))
                cut = tokens[-1] != EOS
                expected.setdefault(sample_id, []).append((tuple(tokens + [EOS] * cut), cut))
        assert by_input(rows, batch) == expected
        assert 0 < rows.truncated.sum() < len(rows)

    @pytest.mark.parametrize("options", [{}, {"decoder_learned_pos": True}])
    def test_the_fast_path_equals_the_general_one(self, options, monkeypatch):
        model, batch = make_language_model(**options).eval(), prompts()
        assert TransformerSteps.fits(model.decoder)
        sampler = make_sampler(model, 0, 8)
        fast = sampler.sample_rows(batch, [12] * 6, TEMPERATURES, SEED)
        monkeypatch.setattr(branching, "decoding_steps", DecoderSteps)
        general = sampler.sample_rows(batch, [12] * 6, TEMPERATURES, SEED)
        assert torch.equal(fast.tokens, general.tokens) and len(fast.lengths.unique()) > 4

    @pytest.mark.parametrize("arch", LANGUAGE_MODELS)
    def test_batch_and_padding_do_not_matter(self, arch, monkeypatch):
        """Padding, splitting and permuting leave a prompt's rows alone, compaction as well."""
        sampler, batch = make_sampler(make_language_model(arch)), prompts()
        counts = np.array(COUNTS)
        alone = by_input(sampler.sample_rows(batch, counts, TEMPERATURES, SEED), batch)
        padded = pad_more(batch)
        assert by_input(sampler.sample_rows(padded, counts, TEMPERATURES, SEED), padded) == alone
        for share, order in itertools.product((0.0, 1.1), ([0, 2, 4], [5, 1, 3])):
            monkeypatch.setattr(draws, "COMPACT_AT", share)
            part = take(batch, order)
            rows = sampler.sample_rows(part, counts[order], TEMPERATURES[order], SEED)
            for sample_id, tokens in by_input(rows, part).items():
                assert tokens == alone[sample_id]

    @pytest.mark.parametrize("look", [1, 2, 100])
    @pytest.mark.parametrize("arch", LANGUAGE_MODELS)
    def test_fixed_rows_draw_the_same(self, arch, look, monkeypatch):
        """The strategy of GPUs, where each row reads its prompt by itself."""
        monkeypatch.setattr(fixed_rows, "LOOK_EVERY", look)
        sampler, batch = make_sampler(make_language_model(arch).eval(), 0, 8), prompts()
        rows, known = sampler.sample(batch, [12] * 6, TEMPERATURES, SEED)
        sampler.strategy = FIXED_ROWS
        found, found_known = sampler.sample(batch, [12] * 6, TEMPERATURES, SEED)
        assert torch.equal(found.tokens, rows.tokens) and torch.equal(found.lengths, rows.lengths)
        for name, expected in vars(known).items():
            assert torch.allclose(getattr(found_known, name), expected, atol=1e-5), name

    def test_a_prompt_is_read_once(self):
        """All samples of a prompt share one place in the batch while it is read."""
        model, batch = make_language_model().eval(), prompts()
        sizes, forward = [], model.decoder.forward

        def counted(previous, **arguments):
            sizes.append(tuple(previous.shape))
            return forward(previous, **arguments)

        model.decoder.forward = counted
        make_sampler(model, 0, 4).sample_rows(batch, [50] * 6, np.ones(6, np.float32), SEED)
        assert sizes[:2] == [(6, 1), (6, 2)] and sizes[2][0] > 6 and len(sizes) == 3 + 5

    def test_eos_in_a_prompt_ends_nothing(self):
        """As in the prompts of models that were trained on several sentences a sample."""
        model, batch = make_language_model().eval(), prompts()
        batch["net_input"]["src_tokens"][0, 2] = EOS
        rows = make_sampler(model, 0, 3).sample_rows(batch, [20] * 6, np.ones(6, np.float32), SEED)
        assert torch.bincount(rows.input_index).tolist() == [20] * 6
        assert (rows.lengths >= 2).all() and rows.lengths.max() == 4
        log_probs, _ = plain_scores(model, batch, rows, 1)
        scores = rescore(model, batch["net_input"], rows, PAD, EOS, 1)
        assert torch.allclose(scores.log_probs, log_probs, atol=1e-5)

    def test_the_models_length_bounds_prompt_and_sample(self):
        """Limits leave room for the prompt; the longest sample fits into learned positions."""
        model = make_language_model(tokens_per_sample=8, decoder_learned_pos=True).eval()
        batch = prompts()
        lengths = batch["net_input"]["src_lengths"]
        sampler = make_sampler(model, 0, 20)
        assert sampler.length_limits(lengths, lengths).tolist() == (8 - lengths).tolist()
        rows = sampler.sample_rows(batch, [30] * 6, np.float32([9] * 6), SEED)
        assert torch.equal(rows.truncated, rows.lengths == 9 - lengths[rows.input_index])
        assert rows.truncated.any()


class TestStageTwo:
    @pytest.mark.parametrize("min_len", [0, 1])
    @pytest.mark.parametrize("arch", LANGUAGE_MODELS)
    def test_equals_the_plain_pass(self, arch, min_len, monkeypatch):
        """Log-probabilities of rows and tokens, gradients, entropies, at a temperature, too."""
        model, batch, rows = make_language_model(arch).eval(), pad_more(prompts()), ragged_rows()
        weights = torch.linspace(-1, 2, len(rows))
        expected, entropy = plain_scores(model, batch, rows, min_len)
        tokens = plain_token_scores(model, batch, rows, min_len)
        tempered, _ = plain_scores(model, batch, rows, min_len, temperature=0.6)
        gradient = gradients(model, (weights * (expected + tempered)).sum())
        model.train()
        for piece_tokens, max_tokens in PIECES:
            monkeypatch.setattr(row_scorer, "PIECE_TOKENS", piece_tokens)
            monkeypatch.setattr(row_scorer, "HEAD_POSITIONS", piece_tokens // 2 + 1)
            scores = rescore(
                model,
                batch["net_input"],
                rows,
                PAD,
                EOS,
                min_len,
                max_tokens=max_tokens,
                temperature=torch.full((len(rows),), 0.6),
                tokens=True,
            )
            assert torch.allclose(scores.log_probs, expected, rtol=1e-5, atol=1e-5)
            assert torch.allclose(scores.token_log_probs, tokens, rtol=1e-5, atol=1e-5)
            assert torch.allclose(scores.entropy, entropy, rtol=1e-5, atol=1e-5)
            assert torch.equal(scores.lengths, rows.lengths - rows.truncated.long())
            found = gradients(model, (weights * (scores.log_probs + scores.tempered)).sum())
            assert gradient.norm() > 1
            assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("arch", LANGUAGE_MODELS)
    def test_standard_sampling_equals_two_stages(self, arch, cached):
        """Rows, scores and gradients, those of the references among them."""
        model, batch = make_language_model(arch).train(), prompts()
        sampler = make_sampler(model)
        drawn = sampler.sample_rows(batch, COUNTS, TEMPERATURES, SEED)
        given = append_rows(drawn, batch["target"], PAD)
        temperature = torch.tensor(TEMPERATURES)[given.input_index]
        common = (batch["net_input"], given, PAD, EOS, 1)
        expected = rescore(model, *common, temperature=temperature)
        rows, scores, references = sample_with_graph(
            model,
            batch,
            sampler,
            COUNTS,
            TEMPERATURES,
            SEED,
            cached=cached,
            tempered=True,
            references=batch["target"],
        )
        n = len(drawn)
        assert torch.equal(rows.tokens, drawn.tokens) and torch.equal(rows.lengths, drawn.lengths)
        assert torch.equal(rows.truncated, drawn.truncated) and drawn.truncated.any()
        found = torch.cat([scores.log_probs, references.log_probs, scores.tempered])
        wanted = torch.cat([expected.log_probs, expected.tempered[:n]])
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
        assert torch.allclose(scores.entropy, expected.entropy[:n], rtol=1e-5, atol=1e-5)
        weights = torch.linspace(-1, 2, len(found))
        slope = gradients(model, (weights * wanted).sum())
        assert slope.norm() > 1
        found = gradients(model, (weights * found).sum())
        assert torch.allclose(found, slope, rtol=1e-3, atol=1e-4)


class Run:
    """Task, criterion and model, as the trainer uses them."""

    def __init__(self, task_options=None, dataset=None, **options):
        self.task = make_language_task(dataset, **(task_options or {}))
        options.setdefault("reward", "share-of-a")
        self.criterion = make_criterion(self.task, **options)
        self.model = make_language_model().train()
        self.task.rl.baseline.push([0.3, 0.1, 0.6])
        self.task.open_store()
        ShareOfA.seen = []

    def loss(self, batch, seed=9):
        torch.manual_seed(seed)
        return self.criterion(self.model, batch)

    def validate(self, batch):
        self.criterion.eval()
        self.model.eval()
        return self.criterion(self.model, batch)


class TestCriterion:
    @pytest.mark.parametrize("objective", ["fused", "reinforce"])
    def test_one_sample_is_reinforce(self, objective):
        """K = 1: the loss is −α (r − b) log p by the plain pass, with the queue's mean b."""
        run, batch = Run({"num_samples": 1}, objective=objective), prompts()
        loss, inputs, log = run.loss(batch)
        torch.manual_seed(9)
        rows, _ = run.criterion.sample_rows(run.model, batch, run.task.plan(batch))
        assert inputs == len(rows) == 6 and log["loss_mrt"] == 0
        rewards = [r.count(A) / (len(r) - 1) for r in by_rows(rows)]
        log_probs, _ = plain_scores(run.model.eval(), batch, rows, 1)
        expected = reinforce_loss(
            log_probs,
            torch.tensor(rewards),
            rows.input_index,
            6,
            0.5,
            np.mean([0.3, 0.1, 0.6]),
            rows.multiplicity,
        ).sum()
        assert torch.allclose(loss, expected, rtol=1e-4)
        slopes = [gradients(run.model, x) for x in (loss, expected)]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-5) and slopes[0].norm() > 0.01

    def test_capable_prompts_are_skipped(self):
        """β = 1/2 with k_min = 0 and K = 1 draws for the less capable half; rewards decide."""
        options = {"num_samples": 1, "min_samples": 0, "elimination_ratio": 0.5}
        run, batch = Run(options), prompts()
        run.loss(batch)
        run.task.rl.commit()
        run.task.rl.begin_epoch(2)
        known = run.task.rl.store.capability(batch["id"].numpy())
        assert len(set(known.tolist())) > 1
        counts = run.task.plan(batch).counts
        assert 0 < counts.sum() < 6
        assert known[counts == 1].max() <= known[counts == 0].min()

    def test_options_without_effect_are_named(self, caplog):
        for detokenizer in ("space", None):
            Run({"text_language": "de"}, reward_detokenizer=detokenizer)
            words = "without effect in this run: --text-language de (for --reward-detokenizer)"
            assert (words in caplog.text) == (detokenizer is None)

    @pytest.mark.parametrize("whole", [False, True])
    def test_what_the_reward_sees(self, whole):
        """The prompt as source; the continuation, alone or behind its prompt."""
        text = "whole" if whole else "continuation"
        run = Run({"reward_text": text}, reward="share-of-a:0.5+bleu:0.5")
        batch = make_batch(make_prompts(), [1, 3])
        rows = make_rows([[B, A, EOS], [A, EOS]], [0, 1])
        scored = run.criterion.score_rows(batch, rows)
        assert (scored.words, scored.reference_words, scored.empty) == (3, 3, 0)
        sources, references, hypotheses = ShareOfA.seen[0]
        assert sources == ["b b a", "b a a"]
        expected = {True: ["b b a b a", "b a a a"], False: ["b a", "a"]}
        assert hypotheses == expected[whole]
        unknown = UNK_IN_REFERENCE
        expected = {True: [f"b b a {unknown} a", "b a a b"], False: [f"{unknown} a", "b"]}
        assert [own[0] for own in references] == expected[whole]
        assert run.criterion.score_rows(batch, make_rows([[EOS], [A, EOS]], [0, 1])).empty == 1

    def test_kl_is_zero_at_the_start_model(self, monkeypatch):
        monkeypatch.setattr(frozen, "load_model", lambda *_: make_language_model())
        for objective in ("fused", "ppo"):
            run = Run(objective=objective, kl_weight=0.3, kl_reference="start.pt")
            loss, _, log = run.loss(prompts())
            assert abs(log["kl"]) < 1e-4
            assert torch.allclose(loss, Run(objective=objective).loss(prompts())[0], atol=1e-4)

    def test_kl_is_that_of_the_continuations(self, monkeypatch):
        monkeypatch.setattr(frozen, "load_model", lambda *_: make_language_model(seed=5))
        run, batch = Run(kl_weight=0.3, kl_reference="other.pt"), prompts()
        _, _, log = run.loss(batch)
        torch.manual_seed(9)
        rows, _ = run.criterion.sample_rows(run.model, batch, run.task.plan(batch))
        log_p, log_ref = (
            plain_scores(model.eval(), batch, rows, 1)[0]
            for model in (run.model, make_language_model(seed=5))
        )
        expected = float(((log_p - log_ref) * rows.multiplicity).sum().detach())
        assert log["kl"] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("objective", ["fused", "rloo", "ppo"])
    def test_split_batches_give_the_same_gradient(self, objective):
        """With references beside the reward."""
        found = []
        for parts in ([[0, 1, 2, 3, 4, 5]], [[0, 3, 5], [1, 2, 4]]):
            run = Run({"num_samples": 4}, objective=objective, mle_weight=0.3)
            loss = sum(run.loss(take(prompts(), part))[0] for part in parts)
            found.append(gradients(run.model, loss))
        assert torch.allclose(*found, rtol=1e-3, atol=1e-5) and found[0].norm() > 0.01


def by_rows(rows):
    return [tokens[:n] for tokens, n in zip(rows.tokens.tolist(), rows.lengths.tolist())]


class TestValidation:
    @pytest.mark.parametrize("min_len", [0, 2])
    @torch.no_grad()
    def test_greedy_output(self, min_len):
        """That of plain steps for each prompt alone, however long the batch's others are."""
        run = Run({"sample_min_len": min_len, "sample_max_len_a": 0.5, "sample_max_len_b": 2})
        model, batch = run.model.eval(), pad_more(prompts())
        project, likely = model.decoder.output_layer, torch.zeros(len(TARGET))
        likely[EOS] = 3.0  # otherwise the length limit would end every output
        model.decoder.output_layer = lambda states: project(states) + likely
        found = run.task.best_hypotheses(model, batch, 1)
        for i, tokens in enumerate(found):
            limit, expected = int(0.5 * batch["net_input"]["src_lengths"][i]) + 2, []
            while len(expected) < limit and expected[-1:] != [EOS]:
                step = plain_step(model, prompt_of(batch, i), expected, min_len)
                expected.append(int(step.argmax()))
            assert tokens == expected + [EOS] * (expected[-1] != EOS)
        lengths = set(map(len, found))
        assert min(lengths) == min_len + 1 and len(lengths) > 1

    def test_loss_is_that_of_the_references(self):
        run, batch = Run(), prompts()
        loss, size, log = run.validate(batch)
        rows = given_rows(batch["target"], PAD)
        log_probs, _ = plain_scores(run.model, batch, rows)
        assert loss.item() == pytest.approx(-log_probs.sum().item(), rel=1e-5)
        assert size == log["reference_tokens"] == int(batch["target"].ne(PAD).sum())

    def test_samples_are_the_same_each_time(self):
        """--valid-beam 0: one sample a prompt, whatever the seed; no references, no ppl."""
        run = Run(dataset=make_prompts(prompt_tokens=None), valid_beam=0)
        batch = make_batch(make_prompts(prompt_tokens=None))
        rewards = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            loss, size, log = run.validate(batch)
            assert loss == -log["valid_reward"] and size == 6 and "reference_tokens" not in log
            rewards.append(log["valid_reward"])
        hypotheses = [seen[2] for seen in ShareOfA.seen]
        assert rewards[0] == rewards[1] and hypotheses[0] == hypotheses[1]
        run.model, run.task.sampler = make_language_model(seed=3), None
        run.validate(batch)
        assert ShareOfA.seen[-1][2] != hypotheses[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prompt_tokens": 0}, "--prompt-tokens is 0, but must be at least 1"),
            ({"shorten_method": "truncate"}, "--shorten-method does not go with"),
            ({"sample_break_mode": "complete"}, "--sample-break-mode does not go with"),
            ({"output_dictionary_size": 5}, "--output-dictionary-size does not go with"),
            ({"past_target": True}, "--past-target does not go with"),
            ({"reward_references": "train"}, "--reward-references does not go with"),
            ({"min_samples": 9}, "--min-samples is 9"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(EsrlError, match=message):
            make_language_task(**options)

    def test_fairseqs_own_task(self):
        from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

        task = LanguageModelingTask(LanguageModelingConfig(), TARGET)
        with pytest.raises(EsrlError, match="choose --task esrl_language_modeling"):
            make_criterion(task)
