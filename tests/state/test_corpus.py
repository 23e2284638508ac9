"""Mean counts of rewards of a corpus: per input, over batches and ranks alike, in checkpoints."""

import io
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.rewards.scorer import Scored
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.corpus import CorpusCounts, counts_of_inputs
from esrl_fairseq.state.rl_state import RLState, Visit

OWNER = bytes(range(32))


def make_state(**options):
    state = RLState(None)
    state.corpus = CorpusCounts(build_reward("corpus-bleu:0.5+length", {"corpus-bleu": options}))
    state.open_store(0, 50, OWNER)
    return state


def visit(ids, seed):
    counts = np.random.default_rng(seed).integers(1, 20, 10).astype(float)
    given = np.array(ids), np.zeros(len(ids), RECORD), np.zeros(len(ids), np.float32)
    return Visit(*given, counts={"corpus-bleu": counts})


def mean(state):
    return state.corpus.moving["corpus-bleu"].mean


def test_counts_are_means_of_an_inputs_draws():
    """Input 0 has 4 draws of two rows, input 1 none, input 2 one: each input counts once."""
    values = np.arange(30.0).reshape(3, 10)
    nothing = np.zeros(3, np.float32)
    scored = Scored(nothing, 0, 0, 0, rest=nothing, counts={"corpus-bleu": values})
    index, draws = torch.tensor([0, 0, 2]), torch.tensor([3, 1, 1])
    rows = SimpleNamespace(input_index=index, multiplicity=draws)
    found = counts_of_inputs(SimpleNamespace(rows=rows, scored=scored, inputs=3))["corpus-bleu"]
    np.testing.assert_allclose(found, 0.75 * values[0] + 0.25 * values[1] + values[2])


def test_an_update_is_one_step_whatever_its_batches():
    """Only read within the update; the order of batches and one given up before change nothing."""
    states = [make_state(decay=0.5) for _ in range(3)]
    batches = [visit([0, 1], 1), visit([2], 2)]
    for state, order in zip(states, (batches, batches[::-1])):
        state.corpus.moving["corpus-bleu"].validated(np.ones(10))
        state.add(visit([3, 4], 3))
        state.begin_update()
        for batch in order:
            state.add(batch)
            assert mean(state).tolist() == [1] * 10
        state.commit()
    total = sum(batch.counts["corpus-bleu"] for batch in batches)
    np.testing.assert_allclose(mean(states[0]), 0.5 + 0.5 * total / 3)
    assert np.array_equal(mean(states[0]), mean(states[1]))
    states[2].commit()  # a later pass of PPO draws nothing
    assert mean(states[2]) is None and states[2].corpus.missing == ["corpus-bleu"]


def reloaded(state):
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_has_them_bit_for_bit():
    state, other = make_state(), make_state()
    state.add(visit([0, 1, 2], 4))
    state.commit()
    other.load_state_dict(reloaded(state))
    assert np.array_equal(mean(state), mean(other)) and not other.corpus.missing
    for each in (state, other):
        each.open_store(0, 50, OWNER)
        each.add(visit([3], 5))
        each.commit()
    assert np.array_equal(mean(state), mean(other))


@pytest.mark.parametrize("options", [{"tokenize": "char"}, {"lowercase": True}])
def test_counts_of_other_words_are_not_gone_on_with(options, caplog):
    state, other = make_state(), make_state(**options)
    state.corpus.moving["corpus-bleu"].validated(np.ones(10))
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(reloaded(state))
    assert other.corpus.missing == ["corpus-bleu"]
    assert caplog.messages == [
        "the checkpoint's mean counts are of corpus-bleu tok:13a case:mixed, this run counts "
        f"{other.corpus.moving['corpus-bleu'].kind}: it begins with those of a validation"
    ]


def test_checkpoints_of_other_rewards_have_none():
    state, other = make_state(), RLState(None)
    state.load_state_dict(reloaded(other))
    assert state.corpus.missing == ["corpus-bleu"] and other.corpus.missing == []
    state.corpus.moving["corpus-bleu"].validated(np.ones(10))
    other.load_state_dict(reloaded(state))
    assert other.state_dict()["corpus"] == {}


def test_what_is_no_count_is_refused():
    state = make_state()
    state.corpus.moving["corpus-bleu"].validated(np.ones(10))
    saved = reloaded(state)
    saved["corpus"]["corpus-bleu"]["mean"][3] = -1
    with pytest.raises(EsrlError, match="mean counts of corpus-bleu .* cannot be read"):
        make_state().load_state_dict(saved)
