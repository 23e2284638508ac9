"""Ragged rows: teacher-forcing inputs, duplicates, references behind samples."""

import torch
from helpers import EOS, PAD, A, B, make_rows, without_duplicates

from esrl_fairseq.core.sequences import (
    Prefix,
    append_rows,
    decoder_inputs,
    moved,
)


def test_scored_tokens():
    """The policy chose every token but padding and an EOS that the length limit forced."""
    rows = make_rows([[A, B, EOS], [EOS], [A, B, EOS]], [0, 0, 1], [False, False, True])
    assert rows.scored().tolist() == [[True] * 3, [True, False, False], [True, True, False]]


def test_moved():
    """Each row by its own number of columns; what comes from outside is filled."""
    values = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    by = torch.tensor([0, 2, -1])
    assert moved(values, by, 4, 0).tolist() == [[1, 2, 3, 0], [0, 0, 4, 5], [8, 9, 0, 0]]
    assert moved(values, by, 2, 0).tolist() == [[1, 2], [0, 0], [8, 9]]


def test_decoder_inputs():
    """The prefix first, the last token dropped, padding behind; with and without prompts."""
    rows = make_rows([[A, B, EOS], [EOS], [B, EOS]], [0, 0, 0])
    start = Prefix(torch.full((3, 1), EOS), torch.ones(3, dtype=torch.long))
    found = decoder_inputs(rows.tokens, rows.lengths, start, PAD)
    assert found.tolist() == [[EOS, A, B], [EOS, PAD, PAD], [EOS, B, PAD]]
    prompts = Prefix(
        torch.tensor([[EOS, PAD, PAD], [EOS, B, A], [EOS, A, PAD]]), torch.tensor([1, 3, 2])
    )
    found = decoder_inputs(rows.tokens, rows.lengths, prompts, PAD)
    assert found.tolist() == [
        [EOS, A, B, PAD, PAD], [EOS, B, A, PAD, PAD], [EOS, A, B, PAD, PAD],
    ]  # fmt: skip


def test_duplicates_collapse_within_an_input():
    """(e) The first of equal rows stays, counted; equal rows of other inputs are not its own."""
    rows = make_rows(
        [[B, EOS], [A, B, EOS], [B, EOS], [A, EOS], [B, EOS], [B, EOS], [A, EOS], [A, EOS]],
        [0, 0, 0, 1, 1, 1, 3, 3],
        truncated=[False, True, False, False, False, False, False, False],
        multiplicity=[1, 1, 1, 2, 1, 1, 1, 4],
    )
    distinct = without_duplicates(rows)
    assert distinct.tokens.tolist() == [
        [B, EOS, PAD], [A, B, EOS], [A, EOS, PAD], [B, EOS, PAD], [A, EOS, PAD],
    ]  # fmt: skip
    assert distinct.lengths.tolist() == [2, 3, 2, 2, 2]
    assert distinct.input_index.tolist() == [0, 0, 1, 1, 3]
    assert distinct.truncated.tolist() == [False, True, False, False, False]
    assert distinct.multiplicity.tolist() == [2, 1, 2, 2, 5]


def test_collapse_keeps_the_order_of_samples():
    """Sorting by tokens would be a bias of what is logged and of ties; order of draws stays."""
    draw = torch.Generator().manual_seed(1)
    bodies = torch.randint(4, 6, (60, 2), generator=draw).tolist()
    rows = make_rows([[*b, EOS] for b in bodies], torch.arange(6).repeat_interleave(10))
    expected = {}
    for i, body in zip(rows.input_index.tolist(), rows.tokens.tolist()):
        expected[i, tuple(body)] = expected.get((i, tuple(body)), 0) + 1
    distinct = without_duplicates(rows)
    found = zip(distinct.input_index.tolist(), map(tuple, distinct.tokens.tolist()))
    assert list(found) == list(expected)
    assert distinct.multiplicity.tolist() == list(expected.values())


def test_no_rows_collapse_to_none():
    """A batch whose inputs are all skipped."""
    none = torch.zeros(0, dtype=torch.long)
    rows = make_rows([[A, EOS]], [0])
    rows = type(rows)(rows.tokens[:0], none, none, none.bool(), none)
    assert len(without_duplicates(rows)) == 0


def test_references_are_appended():
    """One row an input behind the samples, whichever is wider, never truncated."""
    rows = make_rows([[A, EOS], [B, EOS]], [0, 1], [False, True])
    for references in ([[A, B, B, EOS], [B, EOS, PAD, PAD]], [[EOS], [EOS]]):
        both = append_rows(rows, torch.tensor(references), PAD)
        width = max(2, len(references[0]))
        assert both.tokens.tolist() == [
            row + [PAD] * (width - len(row)) for row in [[A, EOS], [B, EOS], *references]
        ]
        assert both.lengths.tolist() == [2, 2, *(len(r) - r.count(PAD) for r in references)]
        assert both.input_index.tolist() == [0, 1, 0, 1]
        assert both.truncated.tolist() == [False, True, False, False]
        assert both.multiplicity.tolist() == [1, 1, 1, 1]
