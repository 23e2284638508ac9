"""The task ``esrl_translation``: fairseq's translation task plus dynamic sampling and RL state."""

import logging
from dataclasses import dataclass
from typing import Any

from fairseq import utils
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

from esrl_fairseq.checks.data import refuse_other_words
from esrl_fairseq.checks.models import check_task
from esrl_fairseq.data.references import reference_files, with_references
from esrl_fairseq.sampling.options import SamplingConfig
from esrl_fairseq.sampling_task import SamplingTask

logger = logging.getLogger(__name__)


@dataclass
class EsrlTranslationConfig(SamplingConfig, TranslationConfig):
    """The translation task's options, and ours."""


class LanguageEnds:
    """Of multilingual BART: the name of its language ends a text, and is what the decoder reads
    first."""

    @property
    def eos(self) -> int:
        return self.target_dictionary.index(f"[{self.cfg.target_lang}]")  # type: ignore[attr-defined]

    @property
    def source_eos(self) -> int:
        return self.source_dictionary.index(f"[{self.cfg.source_lang}]")  # type: ignore[attr-defined]


def attach_sampling(task: FairseqTask) -> None:
    """Make a stock task able to sample, with default options; its class gains the mixin.

    Raises:
        EsrlError: the task has no inputs to sample for.
    """
    check_task(task)
    kinds: tuple[type, ...] = (SamplingTask, type(task))
    if isinstance(task, TranslationFromPretrainedBARTTask):
        kinds = (LanguageEnds, *kinds)
    task.__class__ = type(f"Esrl{type(task).__name__}", kinds, {})
    options = SamplingConfig()
    options.save_dir = None
    task.start_sampling(options)
    logger.info(
        "criterion esrl attached a sampler with default options (%d samples an input, capability "
        "%s, elimination ratio %s) to the task; --task esrl_translation has options for these",
        options.num_samples,
        options.capability,
        options.elimination_ratio,
    )


@register_task("esrl_translation", dataclass=EsrlTranslationConfig)
class EsrlTranslationTask(SamplingTask, TranslationTask):
    """Translation with stage-one sampling, a capability store and RL state."""

    cfg: EsrlTranslationConfig

    def __init__(self, cfg: EsrlTranslationConfig, src_dict: Any, tgt_dict: Any):
        super().__init__(cfg, src_dict, tgt_dict)
        self.start_sampling(cfg)
        names = (cfg.reward_references or "").split(",")
        self.reference_splits = tuple(name.strip() for name in names if name.strip())

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if not self.trained_by_reward:  # fairseq-generate needs no reference but the target
            return
        if self.never:
            named = self.datasets[split]
            refuse_other_words(named, named.split, self.file_endings, self.never)
        folders = utils.split_paths(self.cfg.data)
        languages = (self.cfg.source_lang, self.cfg.target_lang)
        if split in self.reference_splits:
            # As in fairseq's: only training data have shards.
            shard = (epoch - 1) % len(folders) if split == self.cfg.train_subset else 0
            text = None if self.scorer is None else self.scorer.reference
            self.datasets[split] = with_references(
                self.datasets[split], split, folders[shard], *languages, text
            )
        if split == self.cfg.train_subset:
            for other in self.reference_splits:  # names that nobody loads are refused, too
                if other != split:
                    reference_files(folders[0], other, *languages)
