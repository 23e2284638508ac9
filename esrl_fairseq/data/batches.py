"""Sentences about data that fairseq cannot make batches of."""

from typing import Any

from fairseq.tasks import FairseqTask

from esrl_fairseq.data.lines import NamedLines, places
from esrl_fairseq.errors import EsrlError


class CheckedBatches(FairseqTask):
    """Mixed in before a task's own class."""

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, which knows whether other batches are accepted."""
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        # Of tasks that have the option; those of fairseq's own go on, with a warning.
        batches.accept_other_batches = getattr(
            getattr(self, "options", None), "accept_other_batches", True
        )
        return batches

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """fairseq's, with a sentence where it has a traceback."""
        try:
            super().load_dataset(split, *args, **kwargs)
        except AssertionError as error:
            if "same number of examples" not in str(error):
                raise
            raise EsrlError(
                f"the sides of {split!r} do not fit together ({error}): run fairseq-preprocess "
                "again, on files with as many lines"
            ) from error

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, skip: bool = False
    ) -> Any:
        """fairseq's, with the file's line where it has a traceback."""
        if isinstance(dataset, NamedLines) and not skip:
            ignored = dataset.filter_indices_by_size(indices, max_positions)[1]
            if len(ignored):
                first = int(min(ignored))
                source, target = map(int, dataset.size(first))
                raise EsrlError(
                    f"{places(dataset.src, [first], dataset.split)[0]} is too long ({len(ignored)} "
                    f"such lines in all): it has {source} source and {target} target tokens, but "
                    f"the model reads at most {max_positions}; leave them out, by hand or by "
                    "--skip-invalid-size-inputs-valid-test, or choose a model that reads more"
                )
        return super().filter_indices_by_size(indices, dataset, max_positions, skip)
