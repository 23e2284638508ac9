"""The tasks of translation: fairseq's plus dynamic sampling and RL state."""

import logging
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

from esrl_fairseq.checks.data import refuse_other_words
from esrl_fairseq.checks.models import check_languages, check_task
from esrl_fairseq.data.references import reference_files, with_references
from esrl_fairseq.sampling.options import SamplingConfig
from esrl_fairseq.sampling_task import SamplingTask

logger = logging.getLogger(__name__)


@dataclass
class EsrlTranslationConfig(SamplingConfig, TranslationConfig):
    """The translation task's options, and ours."""


@dataclass
class LanguageTagsConfig(FairseqDataclass):
    """Options of data whose texts end with the name of their language."""

    langs: Optional[str] = field(
        default=None,
        metadata={
            "help": "languages of the model's pretraining, all of them and in their order, such as "
            "ar_AR,de_DE,en_XX: each is a word of the dictionary"
        },
    )
    prepend_bos: bool = field(
        default=False,
        metadata={"help": "texts begin with <s>, as in the pretraining of mBART"},
    )


@dataclass
class EsrlBartTranslationConfig(LanguageTagsConfig, EsrlTranslationConfig):
    """Those of esrl_translation, and of languages."""


class LanguageEnds:
    """Of multilingual BART: the name of its language ends a text, and is what the decoder reads
    first; it is no part of the text."""

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
        check_languages(task.cfg)
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


class TaggedTranslationTask(TranslationFromPretrainedBARTTask):
    """fairseq's translation with a pretrained multilingual BART, with all options of its
    translation: it leaves some out."""

    def __init__(self, cfg: Any, *dictionaries: Any):
        check_languages(cfg)
        super().__init__(cfg, *dictionaries)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Pairs whose texts end with the names of their languages."""
        cfg, folders = self.cfg, utils.split_paths(self.cfg.data)
        shard = (epoch - 1) % len(folders) if split == cfg.train_subset else 0
        self.datasets[split] = load_langpair_dataset(
            folders[shard],
            split,
            cfg.source_lang,
            self.src_dict,
            cfg.target_lang,
            self.tgt_dict,
            combine=combine,
            dataset_impl=cfg.dataset_impl,
            upsample_primary=cfg.upsample_primary,
            left_pad_source=cfg.left_pad_source,
            left_pad_target=cfg.left_pad_target,
            # A truncated source has these words beside.
            max_source_positions=cfg.max_source_positions - 1 - cfg.prepend_bos,
            max_target_positions=cfg.max_target_positions,
            load_alignments=cfg.load_alignments,
            truncate_source=cfg.truncate_source,
            num_buckets=cfg.num_batch_buckets,
            shuffle=split != "test",
            pad_to_multiple=cfg.required_seq_len_multiple,
            prepend_bos=cfg.prepend_bos,
            append_source_id=True,
        )


@register_task("esrl_translation_from_pretrained_bart", dataclass=EsrlBartTranslationConfig)
class EsrlBartTranslationTask(LanguageEnds, EsrlTranslationTask, TaggedTranslationTask):
    """Translation with mBART: what esrl_translation has, for texts that end with languages."""

    cfg: EsrlBartTranslationConfig

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Those of the configuration; fairseq's task adds them by hand."""
        gen_parser_from_dataclass(parser, EsrlBartTranslationConfig())
