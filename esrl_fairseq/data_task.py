"""What any task needs of its data: checks when they are loaded, same batches after a resume."""

import logging
from collections.abc import Callable
from typing import Any, Optional

from fairseq import utils
from fairseq.data import LanguagePairDataset

from esrl_fairseq.checks.data import (
    WITH_TARGETS,
    WITHOUT_EMPTY_LINES,
    check_references,
    refuse_empty_lines,
)
from esrl_fairseq.data.batches import CheckedBatches
from esrl_fairseq.data.fingerprint import shard_marks
from esrl_fairseq.data.folders import FoundData
from esrl_fairseq.data.lines import NamedLines, split_name
from esrl_fairseq.data.text import Decode

logger = logging.getLogger(__name__)


class DataTask(FoundData, CheckedBatches):
    """Mixed in before a task's own class: data are checked when they are loaded."""

    trained_by_reward = False  # set by the criterion, as are the next
    references_for = ""  # the option that needs references; empty if none does
    references_optional = False  # whether the reward gets references where there are some
    scorer: Any = None  # turns token ids into what the reward sees
    mend_references = WITH_TARGETS  # what to do about data without references, for messages
    mend_empty_lines = WITHOUT_EMPTY_LINES  # and about empty lines,
    mend_empty_references = WITHOUT_EMPTY_LINES  # or empty references
    mend_dictionary = (
        " With --only-source it writes none for the target: copy that of the data that the model "
        "was trained on"
    )
    pretrained = ""  # what the model was before any training here, if it can be had again
    word_decoder: Optional[Callable[[], Decode]] = None
    """Loads what turns the data's words into text, where the model has it."""
    source_word_decoder: Optional[Callable[[], Decode]] = None
    """The same of sources, where theirs differ."""
    never: set[int] = set()
    """Words of the target dictionary that the model gives no probability."""
    marks: Optional[list[str]] = None
    shard = 0
    """Of the training data, the one that is loaded."""

    def learn_words(self, model: Any) -> None:
        """Take from a model (not wrapped) what it knows of its words; most know nothing."""
        self.never = set(getattr(model, "never", ()))
        for name in ("pretrained", "word_decoder", "source_word_decoder"):
            setattr(self, name, getattr(model, name, getattr(type(self), name)))

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        training = split == self.cfg.train_subset
        if training:
            self.shard = (epoch - 1) % len(utils.split_paths(self.cfg.data))
        dataset = self.datasets[split]
        if not isinstance(dataset, LanguagePairDataset):
            return
        name = split_name(self.cfg.data, split, self.cfg.train_subset, epoch)
        if type(dataset) is LanguagePairDataset:
            self.datasets[split] = NamedLines(dataset, name)
        if training or self.trained_by_reward:
            self.check_lines(dataset, name, self.needs_references(training))
        if self.references_optional and dataset.tgt is None:
            logger.info("%s has no target side: the reward gets no references", name)

    def check_lines(self, dataset: LanguagePairDataset, name: str, references_for: str) -> None:
        """Refuse lines that hold nothing to learn from, or nothing to score with."""
        source, target = self.file_endings
        texts = (None, None) if self.scorer is None else (self.scorer.source, self.scorer.reference)
        mend = f": {self.mend_empty_lines}"
        refuse_empty_lines(dataset.src, dataset.src_dict, name, source, texts[0], mend)
        mends = self.mend_references, self.mend_empty_references
        check_references(dataset, name, target, references_for, texts[1], *mends)

    def needs_references(self, training: bool) -> str:
        """The option that needs references, in training or in validation; empty if none does."""
        if training or self.references_for.startswith("--reward"):
            return self.references_for
        return "--eval-bleu" if getattr(self.cfg, "eval_bleu", False) else ""

    @property
    def folders(self) -> list[str]:
        """Of the data, one a shard; none where a program brings its own."""
        return utils.split_paths(self.cfg.data) if self.cfg.data else []

    def shard_marks(self) -> list[str]:
        """What tells the shards of the training data from each other; they are looked at once."""
        if self.marks is None:
            self.marks = shard_marks(self.folders, self.cfg.train_subset, self.file_endings)
        return self.marks

    @property
    def file_endings(self) -> tuple[str, str]:
        """What the names of the data's text files end with, those of sources and of outputs."""
        return self.languages
