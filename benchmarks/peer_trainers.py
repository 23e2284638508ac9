"""The same update by ``fairseq-train``'s trainer with this package, and by TRL's trainers."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import shlex
import tempfile
from collections.abc import Callable
from typing import Any

import common
import torch
from common import Skip
from fairseq import options as fairseq_options
from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from peer_setting import Setting, Stages, of_trl

import esrl_fairseq  # noqa: F401  (registration)
from esrl_fairseq.huggingface import library

TRAINERS = {"trl_rloo": "RLOO", "trl_grpo": "GRPO"}
CLIP_NORM = 1.0


# This package


def esrl_trainer(
    setting: Setting, flags: str, device: str, seed: int, fixed: bool = True
) -> tuple[Trainer, list[Any]]:
    """The trainer of ``fairseq-train`` with these flags, and one update's batches of prompts.

    Args:
        flags: come last, so that they prevail.
        fixed: every sample has the setting's length; otherwise that is the most.
    """
    least = setting.length if fixed else 0
    arguments = [
        *(str(setting.folder / "data-bin"), "--task", "esrl_language_modeling"),
        *("--criterion", "esrl", "--objective", "rloo", "--arch", "hf_causal_lm"),
        *("--hf-model", setting.model, "--add-bos-token", "--elimination-ratio", "0"),
        *("--reward", "python:peer_setting.of_esrl", "--num-samples", setting.k),
        *("--sample-max-len-b", setting.length, "--sample-min-len", least),
        *("--batch-size", setting.prompts, "--required-batch-size-multiple", 1),
        *("--optimizer", "adam", "--lr", 0, "--clip-norm", CLIP_NORM, "--seed", seed),
        *("--no-save", "--max-update", 1000, "--check-start", "off"),
        *([] if device == "cuda" else ["--cpu"]),
        *shlex.split(flags),
    ]
    parser = fairseq_options.get_training_parser()
    parsed = fairseq_options.parse_args_and_arch(parser, input_args=[str(a) for a in arguments])
    cfg = convert_namespace_to_omegaconf(parsed)
    task = tasks.setup_task(cfg.task)
    with contextlib.redirect_stdout(io.StringIO()):
        model = task.build_model(cfg.model)
        criterion = task.build_criterion(cfg.criterion)
    trainer = Trainer(cfg, task, model, criterion)
    batches = trainer.get_train_iterator(epoch=1, load_dataset=True)
    trainer.begin_epoch(1)
    epoch = batches.next_epoch_itr(shuffle=False)
    return trainer, [next(epoch) for _ in range(parsed.update_freq[0])]


def esrl_updates(
    setting: Setting, flags: str, device: str, seed: int, updates: int
) -> Callable[[], list[common.Row]]:
    """Returns what makes so many updates and tells the numbers of each."""
    trainer, batches = esrl_trainer(setting, flags, device, seed)
    stages, logs = Stages(device), []
    criterion, forward = trainer.criterion, trainer.criterion.forward

    def logged(*arguments: Any, **keywords: Any) -> Any:
        found = forward(*arguments, **keywords)
        logs.append(found[2])
        return found

    criterion.forward = logged
    stages.time(trainer.optimizer, "backward", "backward")
    stages.time(trainer.task, "optimizer_step", "step")

    def update() -> common.Row:
        logs.clear()
        start = common.seconds_now(device)
        trainer.train_step(batches)
        seconds = common.seconds_now(device) - start
        for log, stage in itertools.product(logs, ("stage_one", "reward", "stage_two")):
            stages.add(stage, log[f"seconds_{stage}"])
        # Every sample reaches the limit, and then has an EOS that nobody chose.
        tokens = sum(log["sampled_tokens"] - log["draws"] for log in logs)
        return {"seconds": seconds, "tokens": int(tokens), **stages.take(seconds)}

    return lambda: [update() for _ in range(updates)]


# TRL


def trl_trainer(
    peer: str, setting: Setting, rows: int, device: str, seed: int, fixed: bool = True, **more: Any
) -> Any:
    """TRL's trainer for all prompts in one update.

    Args:
        peer: of :data:`TRAINERS`.
        rows: samples that are trained on at once; as many micro-batches as that takes make an
            update. All are generated at once, as TRL does by default.
        fixed: see :func:`esrl_trainer`.
        more: further options of its configuration.

    Raises:
        Skip: it is not installed, or the rows do not divide the samples.
    """
    transformers, trl, datasets = library.transformers(), need("trl"), need("datasets")
    samples = setting.prompts * setting.k
    rows = min(rows, samples)
    if samples % rows:
        raise Skip(f"{rows} rows do not divide the update's {samples} samples")
    scratch = tempfile.mkdtemp(dir=setting.folder)
    configuration = getattr(trl, f"{TRAINERS[peer]}Config")(
        output_dir=scratch,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        num_generations=setting.k,
        max_completion_length=setting.length,
        generation_kwargs={"min_new_tokens": setting.length} if fixed else None,
        beta=0.0,  # no penalty for KL, as here
        temperature=1.0,
        gradient_checkpointing=False,  # less memory, more time
        bf16=False,
        use_cpu=device == "cpu",
        max_grad_norm=CLIP_NORM,
        seed=seed,
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(setting.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows_of_data = [{"prompt": [{"role": "user", "content": text}]} for text in setting.texts]
    return getattr(trl, f"{TRAINERS[peer]}Trainer")(
        model=model,
        reward_funcs=of_trl,
        args=configuration,
        train_dataset=datasets.Dataset.from_list(rows_of_data),
        processing_class=tokenizer,
        optimizers=(torch.optim.Adam(model.parameters(), lr=0.0), None),
    )


def trl_updates(
    peer: str, setting: Setting, rows: int, device: str, seed: int, updates: int
) -> Callable[[], list[common.Row]]:
    """Returns what makes so many updates by ``train()`` and tells the numbers of each."""
    trainer = trl_trainer(peer, setting, rows, device, seed, max_steps=updates)
    stages, found = Stages(device), []
    stages.time(trainer, "_generate", "stage_one")
    stages.time(trainer, "_calculate_rewards", "reward")
    stages.time(trainer, "_get_per_token_logps_and_entropies", "old", graph=False)
    stages.time(trainer, "compute_loss", "stage_two")
    stages.time(trainer.accelerator, "backward", "backward")
    state: dict[str, float] = {}

    class Clock(library.transformers().TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            stages.seconds.clear()
            state["start"] = common.seconds_now(device)

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            state["step"] = common.seconds_now(device)

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            stages.add("step", common.seconds_now(device) - state["step"])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = common.seconds_now(device) - state["start"]
            mean = trainer._metrics["train"]["completions/mean_length"][-1]
            tokens = round(mean * setting.prompts * setting.k)
            found.append({"seconds": seconds, "tokens": tokens, **stages.take(seconds)})

    trainer.add_callback(Clock())

    def train() -> list[common.Row]:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return found

    return train


def need(name: str) -> Any:
    """A library of the extra ``peers``.

    Raises:
        Skip: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skip(f"not available ({error}): pip install -e '.[hf,peers]'") from None
