"""Batches of a resumed run."""

from typing import Any

from fairseq.tasks import FairseqTask


class SameBatches(FairseqTask):
    """Mixed in before a task's own class: a run resumed in a later epoch has the batches of one
    never interrupted.

    fairseq makes batches in the first epoch that a process sees, from a seed with that epoch's
    number, and keeps them for all later epochs.
    """

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, made as in the first epoch."""
        rebuilt = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")
        if not rebuilt and self.can_reuse_epoch_itr(dataset):
            kwargs["epoch"] = 1
        return super().get_batch_iterator(dataset, *args, **kwargs)
