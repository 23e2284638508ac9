"""What cannot be trained is refused in one sentence that says what to choose."""

import re
from argparse import Namespace

import pytest
import torch
from fairseq.data import LanguagePairDataset
from fairseq.models import FairseqDecoder, FairseqMultiModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from helpers import (
    EOS,
    PAD,
    SEED,
    TARGET,
    A,
    B,
    _Lines,
    dictionary,
    make_criterion,
    make_model,
    make_task,
)

from esrl_fairseq.checks.models import check_arch, check_model, check_task
from esrl_fairseq.core.sequences import given_rows
from esrl_fairseq.criterion import EsrlCriterion
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.options import EsrlCriterionConfig
from esrl_fairseq.sampling.conditioning import reference_tokens
from esrl_fairseq.sampling.generation import RowSampler
from esrl_fairseq.sampling_task import SamplingTask
from esrl_fairseq.task import EsrlBartTranslationConfig, EsrlBartTranslationTask

ABLE = {"translation", "translation_from_pretrained_bart", "translation_from_pretrained_xlm"}
STOCK = sorted(
    name for name, kind in TASK_REGISTRY.items() if kind.__module__.startswith("fairseq.")
)


@pytest.mark.parametrize("name", STOCK)
def test_stock_tasks(name):
    """All but translation's; the criterion says it before it asks the task for anything."""
    task = object.__new__(TASK_REGISTRY[name])
    if name in ABLE:
        return check_task(task)
    with pytest.raises(EsrlError, match=rf"^--task {name} .*: choose --task esrl_(?!.*\n)"):
        check_task(task)
    with pytest.raises(EsrlError, match=f"--task {name}"):
        EsrlCriterion(EsrlCriterionConfig(), task)


class OwnTask(TranslationTask):
    """A user's."""


class OwnOtherTask(TASK_REGISTRY["speech_to_text"]):
    """Of another kind, and not registered."""


def test_tasks_of_users():
    check_task(object.__new__(OwnTask))
    with pytest.raises(EsrlError, match="--task OwnOtherTask is not of those"):
        check_task(object.__new__(OwnOtherTask))


class Plain(FairseqDecoder):
    """No cache."""


def without_cache(model):
    model.decoder = Plain(TARGET)
    return model


def several(model):
    return FairseqMultiModel({"de-en": model.encoder}, {"de-en": model.decoder})


MODELS = {
    "a decoder .Plain. without incremental decoding": without_cache,
    "is several models": several,
    "has no decoder": lambda model: model.encoder,
}


@pytest.mark.parametrize("words", MODELS)
def test_models(words):
    """When a run begins, with any task, and before anything is sampled."""
    model = MODELS[words](make_model())
    with pytest.raises(EsrlError, match=f"samples word by word, but .*{words}.*: choose"):
        check_model(model)
    with pytest.raises(EsrlError, match=words):
        RowSampler([model], TARGET)
    task = make_task()
    task.begin_epoch(1, model)  # fairseq-generate and other criteria may have it
    make_criterion(task)
    with pytest.raises(EsrlError, match=words):
        task.begin_epoch(1, model)


def test_architectures_before_they_are_built():
    check_arch(Namespace(arch="transformer"))
    check_arch(Namespace(arch="someone's own"))
    for arch in ("cmlm_transformer", "multilingual_transformer_iwslt_de_en", "bert_base"):
        with pytest.raises(EsrlError, match="samples word by word, but "):
            check_arch(Namespace(arch=arch))
        with pytest.raises(EsrlError, match="samples word by word, but "):
            make_task().build_model(Namespace(arch=arch))


def test_what_cannot_be_built_is_one_sentence(monkeypatch):
    def fail(*_):
        raise ValueError("no such\nkernel")

    monkeypatch.setattr(TranslationTask, "build_model", fail)
    with pytest.raises(EsrlError) as caught:
        make_task().build_model(Namespace(arch="lightconv"))
    assert re.fullmatch(
        r"--arch lightconv cannot be built for this task and with these options "
        r"\(ValueError: no such kernel; test_models.py, line \d+\)",
        str(caught.value),
    )


LANGUAGES = ("[de]", "[en]", "<mask>")


def multilingual_bart():
    """Its task, of which each line ends with the name of its language, and a batch."""
    source, target = dictionary("u v w"), dictionary("a b")
    cfg = Namespace(
        data="", langs="de,en", source_lang="de", target_lang="en", train_subset="train",
        eval_bleu=False,
    )  # fmt: skip
    task = TranslationFromPretrainedBARTTask(cfg, source, target)
    ends = source.index("[de]"), target.index("[en]")
    words = [[4, 5], [6], [5, 5, 4]], [[A], [B, A], [A, A, B]]
    sides = [
        _Lines([torch.tensor([*line, EOS, end]) for line in lines])
        for lines, end in zip(words, ends)
    ]
    dataset = LanguagePairDataset(
        sides[0], sides[0].sizes, source, sides[1], sides[1].sizes, target, shuffle=False,
        eos=ends[1],
    )  # fmt: skip
    task.datasets["train"] = dataset
    return task, dataset.collater([dataset[i] for i in range(3)]), ends


def test_multilingual_bart_ends_with_its_language():
    """As fairseq trains it and generates: it starts with that, too, and no text shows it."""
    task, batch, (source_end, end) = multilingual_bart()
    criterion = make_criterion(task)
    assert isinstance(task, SamplingTask) and task.eos == end != EOS
    model = make_model(target=task.tgt_dict, source=task.src_dict, max_target_positions=64)
    read = []
    model.decoder.register_forward_pre_hook(lambda _, args: read.append(args[0][:, 0].tolist()))
    sampler = task.build_sampler(model)
    rows = sampler.sample_rows(batch, [8] * 3, [1.0] * 3, SEED)
    assert {word for words in read for word in words} == {end}
    for tokens, length in zip(rows.tokens.tolist(), rows.lengths.tolist()):
        assert tokens[:length].index(end) == length - 1 and set(tokens[length:]) <= {PAD}
    assert rows.tokens.eq(EOS).any()  # a word like any other
    best = task.best_hypotheses(model, batch, 1)
    assert all(tokens[-1] == end for tokens in best) and criterion.eos == end

    assert torch.equal(reference_tokens(batch, PAD, EOS), batch["target"])
    assert given_rows(batch["target"], PAD).lengths.tolist() == [5, 3, 4]
    scorer = criterion.scorer
    assert scorer.references(batch) == [["a a b"], ["a"], ["b a"]]
    assert scorer.sources(batch) == ["v v u", "u v", "w"]
    assert scorer.hypotheses([[A, EOS, end], [B, end, PAD]]) == ["a", "b"]
    loss, size, log = criterion(model.train(), batch)
    assert torch.isfinite(loss) and size == 3


def test_our_task_of_multilingual_bart():
    """It ends and begins sequences as fairseq's does, and refuses languages without a word."""
    cfg = EsrlBartTranslationConfig(
        data="", langs="de,en", source_lang="de", target_lang="en", save_dir=None, no_save=True
    )
    task = EsrlBartTranslationTask(cfg, dictionary("u v w"), dictionary("a b"))
    assert task.tgt_dict[task.eos] == "[en]" and task.src_dict[task.source_eos] == "[de]"
    assert task.limits["eos"] == task.eos
    wrong = {None: "--langs is missing", "de_DE,en": "--source-lang is de, which"}
    for langs, message in wrong.items():
        cfg.langs = langs
        with pytest.raises(EsrlError, match=message):
            EsrlBartTranslationTask(cfg, dictionary("u v w"), dictionary("a b"))
