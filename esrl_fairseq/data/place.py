"""Where in an epoch's batches a run is, whatever the number of ranks and batches an update.

fairseq counts what one rank has had. An epoch's batches are dealt out to the ranks in turn, so that
n of each of W ranks are the first n·W of one order, which depends on nothing else but, with
``--grouped-shuffling``, W. A run resumed on other ranks deals out the rest of that order.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

Batches = list[Any]
MEND = (
    "give the options of data and batches with which the run began (--batch-size, --max-tokens, "
    "--seed, …), or --accept-other-batches, with which it goes on at about the same share of the "
    "epoch, so that some sentences come twice in it and others not at all"
)


def fingerprint(epoch_itr: Any) -> str:
    """Of an epoch's batches before they are shuffled, and of what they are shuffled by.

    It covers the number of batches and the whole of 64 of them.
    """
    batches = epoch_itr.frozen_batches
    digest = hashlib.sha256(f"{len(batches)} {epoch_itr.seed}".encode())
    for index in np.unique(np.linspace(0, len(batches) - 1, 64).astype(np.int64)):
        digest.update(np.asarray(batches[index], dtype="<i8").tobytes())
    return digest.hexdigest()


def state_at(epoch_itr: Any, state: dict[str, Any]) -> dict[str, Any]:
    """fairseq's state of the iterator, with what another number of ranks needs.

    Adds ``batches``, how many of the epoch's order are used, ``order_of``, the number of ranks that
    the order was made for, ``of_batches``, how many it has, and their ``fingerprint``.
    """
    own, ranks = state["iterations_in_epoch"], epoch_itr.num_shards
    begun = getattr(epoch_itr, "begun", None)
    order_of, used = ranks, own * ranks
    if begun is not None and begun.epoch == state["epoch"]:
        order_of, used = begun.order_of, begun.batches + (own - begun.iterations) * ranks
    if not own:
        order_of, used = ranks, 0
    total = len(epoch_itr.frozen_batches)
    return {
        **state,
        "batches": min(used, total),
        "of_batches": total,
        "order_of": order_of,
        "fingerprint": fingerprint(epoch_itr),
    }


class Begun:
    """An epoch that was begun on other ranks, or with another number of them.

    Args:
        state: of :func:`state_at`.
        ranks: that go on.
    """

    def __init__(self, state: dict[str, Any], ranks: int):
        self.epoch: int = state["epoch"]
        self.batches: int = state["batches"]
        self.order_of: int = state["order_of"]
        self.iterations = -(-self.batches // ranks)  # as many as these ranks would have made

    def rest(self, order: Callable[[int], Batches], rank: int, ranks: int) -> Batches:
        """A rank's batches of the epoch, empty places before those that come.

        Args:
            order: what each of the old ranks would have of the epoch, by its number.
        """
        dealt = [order(old) for old in range(self.order_of)]
        whole = [batch for row in zip(*dealt) for batch in row][self.batches :]
        while whole and not len(whole[-1]):
            whole.pop()  # what makes ranks even
        own = whole[rank::ranks]
        even = -(-len(whole) // ranks)
        return [[]] * self.iterations + own + [[]] * (even - len(own))


def resumed_state(state: dict[str, Any], epoch_itr: Any) -> dict[str, Any]:
    """What fairseq's iterator loads: the place as these ranks would count it.

    Args:
        state: of a checkpoint; of earlier versions and of fairseq itself without what
            :func:`state_at` adds, where ``order_of`` is the number of ranks if it is known.

    Other batches than those that the run had begun with are for :func:`refuse_other_batches`, when
    it is known whether the data are other ones, too.
    """
    epoch_itr.begun = epoch_itr.refused = None
    own = state.get("iterations_in_epoch", 0)
    if own == 0:
        return state
    ranks, total = epoch_itr.num_shards, len(epoch_itr.frozen_batches)
    state = {"order_of": ranks, **state}
    state.setdefault("batches", own * state["order_of"])
    others = state.get("fingerprint", "") not in ("", fingerprint(epoch_itr))
    if others:
        state = other_batches(epoch_itr, state, total)
    if state["batches"] >= total:  # of an earlier version: the last batches were dummies
        return {**state, "epoch": state["epoch"] + 1, "iterations_in_epoch": 0}
    if not (epoch_itr.grouped_shuffling or epoch_itr._supports_prefetch):
        state["order_of"] = 1  # the order is the same for any number: the shortest way to it
    epoch_itr.begun = begun = Begun(state, ranks)
    if own != begun.iterations and not others:
        logger.info(
            "epoch %d was begun on another number of ranks: %d go on after %d of its %d batches",
            *(begun.epoch, ranks, begun.batches, total),
        )
    return {**state, "iterations_in_epoch": begun.iterations}


def refuse_other_batches(epoch_itr: Any) -> None:
    """Stop where a run goes on with other batches, unless that is accepted.

    Raises:
        EsrlError: it is not.
    """
    if getattr(epoch_itr, "refused", None):
        raise EsrlError(epoch_itr.refused)


def other_batches(epoch_itr: Any, state: dict[str, Any], total: int) -> dict[str, Any]:
    """The state at the same share of the epoch."""
    found = (
        f"the checkpoint was made in the middle of epoch {state['epoch']}, after "
        f"{state['batches']} of {state['of_batches']} batches, but this run divides the data into "
        f"other ones"
    )
    used = state["batches"] * total // state["of_batches"]
    state = {**state, "batches": max(used, 1), "order_of": 1}
    if not getattr(epoch_itr, "accept_other_batches", True):
        epoch_itr.refused = f"{found} ({total}): {MEND}"
        return state
    logger.warning(
        "%s: it goes on after %d of %d, so that some sentences may come twice in this epoch, and "
        "others not at all",
        *(found, used, total),
    )
    return state


def dealt_to(epoch_itr: Any, stock: Callable[..., Batches], epoch: int, *how: Any) -> Batches:
    """A rank's batches of an epoch, see :class:`Begun`; ``stock`` is fairseq's way to them."""
    begun = getattr(epoch_itr, "begun", None)
    if begun is None or begun.epoch != epoch:
        return stock(epoch_itr, epoch, *how)
    rank, ranks = epoch_itr.shard_id, epoch_itr.num_shards

    def order(old: int) -> Batches:
        epoch_itr.shard_id, epoch_itr.num_shards = old, begun.order_of
        try:
            return list(stock(epoch_itr, epoch, *how))
        finally:
            epoch_itr.shard_id, epoch_itr.num_shards = rank, ranks

    batches = begun.rest(order, rank, ranks)
    if epoch_itr._supports_prefetch:
        epoch_itr.dataset.prefetch(list(itertools.chain(*batches)))
    return batches
