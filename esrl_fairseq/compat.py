"""Every shim for the versions we run on, each with its reason and when it can go.

Longer than 300 lines because all shims are found in one place. What they call stands elsewhere.
In about this order: what checkpoints may hold; the start and the numbers of a run; checkpoints
written and read whole; the end of a run; stored words; models and tasks; options; ranks and
progress; damaged data, batches and their order; --user-dir; torch.compile; old names. At the end
is :func:`apply`.
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
from fairseq import checkpoint_utils, options, utils
from fairseq.data import Dictionary, indexed_dataset, iterators
from fairseq.data.legacy.masked_lm_dictionary import MaskedLMDictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.models import distributed_fairseq_model
from fairseq.modules.dynamic_convolution import DynamicConv1dTBC, DynamicConv_scripatable
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.trainer import Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode
from torch import Tensor
from torch.utils.data._utils import worker

from esrl_fairseq.checkpoints.configuration import refuse_code, withhold_reward
from esrl_fairseq.errors import EsrlError


def allow_fairseq_checkpoints() -> None:
    """Let ``torch.load`` read fairseq checkpoints with its safe loader.

    Reason: torch ≥ 2.6 loads with ``weights_only=True``. fairseq checkpoints hold an
    ``argparse.Namespace``, those of runs with ``--eval-bleu`` NumPy arrays and numbers, and with
    several ranks the first one sends the others the checkpoint with its configuration. Naming
    these classes, which are plain data, keeps the safe loader on.
    Remove when: fairseq saves and broadcasts checkpoints without them, or registers them itself.
    """
    configuration = [DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, Any]
    containers = [argparse.Namespace, collections.defaultdict, dict, list, int]
    tensors = [distributed_utils._TensorPlaceholder]
    torch.serialization.add_safe_globals([*configuration, *containers, *tensors, *_numpy()])


def _numpy() -> list[Any]:
    """What pickles of arrays and numbers name; the functions have other places in NumPy 1."""
    numbers = (np.int64(0), np.float64(0))
    functions = {value.__reduce__()[0] for value in (np.zeros(0), *numbers)}
    return [np.ndarray, np.dtype, *(type(number.dtype) for number in numbers), *functions]


def run_no_code_of_checkpoints() -> None:
    """Refuse checkpoints whose configuration holds Python, before a model is built from one.

    Reason: fairseq gives settings of a checkpoint to ``eval`` (``--decoder-attention`` of an LSTM,
    ``--encoder-layers`` of fconv, …). All that read one call this function: every command, models
    that take others' parameters, and ``from_pretrained``.
    Remove when: fairseq reads literals there.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu
    if getattr(load, "runs_no_code", False):
        return

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path: Any, arg_overrides: Any = None, *rest: Any, **kw: Any) -> Any:
        state = load(path, arg_overrides, *rest, **kw)
        refuse_code(str(path), state, own=arg_overrides)
        withhold_reward(state, own=arg_overrides)
        return state

    load_checkpoint_to_cpu.runs_no_code = True  # type: ignore[attr-defined]
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def give_numpy_long_back() -> None:
    """Let fairseq's language modeling read one sentence a sample (``--sample-break-mode eos``).

    Reason: fairseq's ``TokenBlockDataset`` asks for ``numpy.compat.long``, ``int`` on Python 3,
    which numpy 2 no longer has.
    Remove when: fairseq asks for ``int``.
    """
    if not hasattr(np, "compat"):
        setattr(np, "compat", types.SimpleNamespace(long=int))  # noqa: B010 (numpy is typed)


def saves_task_state() -> bool:
    """Whether this fairseq keeps a task's state in its checkpoints.

    Reason: ``get_checkpoint_dict`` came to fairseq after some 0.12 releases; without it a resumed
    run would begin with an empty queue and store.
    Remove when: no supported fairseq lacks it.
    """
    return "get_checkpoint_dict" in inspect.getsource(checkpoint_utils.save_checkpoint)


def forget_casts() -> None:
    """After a pass without graph under ``--amp``: let the next pass cast the weights anew.

    Reason: torch's autocast keeps the half-precision copies of weights. Before late 2025 it also
    kept copies made without a graph, through which the weights would get no gradient.
    Remove when: no supported torch does so.
    """
    torch.clear_autocast_cache()


def tell_tasks_of_the_start(before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
    """Call a task's ``before_loading`` and ``after_loading`` around the loading of the checkpoint
    that a training starts from, on every rank.

    Reason: fairseq has no hook between building and training. Only there are the whole
    configuration, the model and the start's checkpoint known, and nothing is lost yet.
    Remove when: fairseq gives tasks such a hook.

    Args:
        before, after: called with fairseq's trainer before and after them, for every task.
    """
    load = checkpoint_utils.load_checkpoint
    if getattr(load, "tells_tasks", False):
        return

    @functools.wraps(load)
    def load_checkpoint(cfg: Any, trainer: Any, **keywords: Any) -> Any:
        before(trainer)
        task = trainer.task
        if hasattr(task, "before_loading"):
            task.before_loading(trainer)
        extra_state, epoch_itr = load(cfg, trainer, **keywords)
        if hasattr(task, "after_loading"):
            task.after_loading(trainer, epoch_itr)
        after(trainer)
        return extra_state, epoch_itr

    load_checkpoint.tells_tasks = True  # type: ignore[attr-defined]
    checkpoint_utils.load_checkpoint = load_checkpoint


def at_bad_numbers(trainer: Any, call: Callable[[FloatingPointError], None]) -> None:
    """Have ``call`` called when fairseq finds gradients that are not finite, or that differ between
    ranks, or has no smaller loss scale left; it has to end the run.

    Reason: fairseq then writes a crash.pt that no run can go on from, computes the update again
    with hooks, which print pages, and ends with a traceback. The first that it does is to gather
    the optimizer's state.
    Remove when: fairseq tells the task.
    """
    gather = trainer.consolidate_optimizer

    def consolidate_optimizer() -> None:
        error = sys.exc_info()[1]
        if isinstance(error, FloatingPointError):
            trainer.consolidate_optimizer = gather  # the call may save
            call(error)
        gather()

    trainer.consolidate_optimizer = consolidate_optimizer


def keep_checkpoints_whole(
    save: Callable[[Any, str], None],
    copy: Callable[[str, str], bool],
    check: Callable[[str], None],
    explain: Callable[[str, Exception], Exception],
    own_last: Callable[[str, str], str],
    check_folder: Callable[[Callable[[str], None], str], None],
) -> None:
    """Write checkpoints whole or not at all, and read them only if they are whole.

    Reason: fairseq writes a second attempt behind what the first one left of the file, writes
    copies over the older ones in place, has nothing on the disk before it removes older
    checkpoints, and ends in a traceback where the disk is full. torch.load reads a file with
    flipped bits without a word.
    Remove when: fairseq writes to the disk before it renames, and torch.load compares checksums.

    Args:
        save: writes a state to a local path.
        copy: gives a file of the first local path the second one's name, too.
        check: refuses a file that is damaged.
        explain: what to raise for what a file's loading raised.
        own_last: of a folder and a suffix, the file to go on from; empty where there is none.
        check_folder: calls fairseq's check of a folder to save in, and words its errors.
    """
    if getattr(checkpoint_utils.torch_persistent_save, "whole", False):
        return
    _save_whole(save)
    _copy_whole(copy)
    _read_whole(check, explain)
    _begin_from_whole(own_last)
    _find_best_below_zero()
    checkpoint_utils.verify_checkpoint_directory = functools.partial(
        check_folder, checkpoint_utils.verify_checkpoint_directory
    )


def _is_local(path: Any) -> bool:
    """Whether a file is this machine's, and not one of a storage that fairseq has a plug-in for."""
    return isinstance(path, str) and not PathManager.path_requires_pathmanager(path)


def _save_whole(save: Callable[[Any, str], None]) -> None:
    stock = checkpoint_utils.torch_persistent_save

    @functools.wraps(stock)
    def torch_persistent_save(obj: Any, filename: Any, async_write: bool = False) -> Any:
        if not _is_local(filename):
            return stock(obj, filename, async_write)
        return save(obj, filename)

    torch_persistent_save.whole = True  # type: ignore[attr-defined]
    checkpoint_utils.torch_persistent_save = torch_persistent_save


def _copy_whole(copy: Callable[[str, str], bool]) -> None:
    class Copies(PathManager):
        @staticmethod
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
            if overwrite and _is_local(src_path) and _is_local(dst_path):
                return copy(src_path, dst_path)
            copied: bool = PathManager.copy(src_path, dst_path, overwrite)
            return copied

    checkpoint_utils.PathManager = Copies


def _find_best_below_zero() -> None:
    """fairseq does not find ``checkpoint.best_reward_-0.123.pt`` again: it would remove none of
    ``--keep-best-checkpoints``, and take each for the best."""
    stock = checkpoint_utils.checkpoint_paths

    @functools.wraps(stock)
    def checkpoint_paths(path: str, pattern: str = r"checkpoint(\d+)\.pt", **more: Any) -> Any:
        if pattern.startswith(r"checkpoint\.best_"):
            pattern = pattern.replace(r"(\d+\.?\d*)", r"(-?\d+\.?\d*)")
        return stock(path, pattern, **more)

    checkpoint_utils.checkpoint_paths = checkpoint_paths


class SafeTorch:
    """The module torch, whose ``load`` runs nothing unless it is told to: neither torch 2.5's own
    default nor TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD undoes that."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(*arguments: Any, **keywords: Any) -> Any:
        keywords.setdefault("weights_only", True)
        return torch.load(*arguments, **keywords)


def _read_whole(
    check: Callable[[str], None], explain: Callable[[str, Exception], Exception]
) -> None:
    stock = checkpoint_utils.load_checkpoint_to_cpu
    checkpoint_utils.torch = SafeTorch()

    @functools.wraps(stock)
    def load_checkpoint_to_cpu(path: str, *arguments: Any, **keywords: Any) -> Any:
        if _is_local(path):
            check(path)
        try:
            return stock(path, *arguments, **keywords)
        except Exception as error:  # whatever a file that is none leads to
            raise explain(path, error) from error

    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def _begin_from_whole(own_last: Callable[[str, str], str]) -> None:
    stock = Trainer.load_checkpoint

    @functools.wraps(stock)
    def load_checkpoint(self: Any, filename: str, *arguments: Any, **keywords: Any) -> Any:
        folder, suffix = self.cfg.checkpoint.save_dir, self.checkpoint_suffix
        if filename == os.path.join(folder, f"checkpoint_last{suffix}.pt") and _is_local(filename):
            filename = own_last(folder, suffix) or filename
        return stock(self, filename, *arguments, **keywords)

    Trainer.load_checkpoint = load_checkpoint


class _AtEnd(logging.Handler):
    """Calls back when fairseq logs that training is over."""

    def __init__(self, call: Callable[[], None]):
        super().__init__(logging.INFO)
        self.call, self.over = call, False

    def emit(self, record: logging.LogRecord) -> None:
        # It stays, since logging would skip the handler behind one that leaves.
        if not self.over and str(record.msg).startswith("done training"):
            self.over = True
            self.call()


def end_at_updates(
    flag: Callable[[], float],
    tell: Callable[[float], None],
    validated: Callable[[Any], None],
    in_worker: Callable[[], None],
) -> None:
    """Let ranks know of each other's signals, without a further collective.

    Reason: fairseq ends in the midst of an update, with nothing saved, whatever signal it gets, and
    the processes that load its data end with it.
    Remove when: fairseq ends by itself after the update that it is in.

    Args:
        flag: 1 where this rank has got a signal.
        tell: gets the sum of all ranks' after each batch of which they sum the statistics.
        validated: called with the trainer after a batch of a validation.
        in_worker: called first in each process that loads data.
    """
    add_up, valid_step = Trainer._aggregate_logging_outputs, Trainer.valid_step
    load_data = worker._worker_loop
    if hasattr(add_up, "__wrapped__"):
        return

    @functools.wraps(add_up)
    def aggregate(self: Any, outputs: Any, *statistics: Any, **keywords: Any) -> Any:
        outputs, sums = add_up(self, outputs, *statistics, flag(), **keywords)
        *sums, ranks = sums
        tell(float(ranks))
        return outputs, sums

    @functools.wraps(valid_step)
    def validate_step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = valid_step(self, *arguments, **keywords)
        validated(self)
        return output

    @functools.wraps(load_data)
    def load_in_worker(*arguments: Any, **keywords: Any) -> Any:
        in_worker()
        return load_data(*arguments, **keywords)

    Trainer._aggregate_logging_outputs = aggregate
    Trainer.valid_step = validate_step
    worker._worker_loop = load_in_worker


def after_updates(call: Callable[..., Any]) -> None:
    """Have ``call`` called instead of fairseq's ``validate_and_save``, with that and its arguments.

    Reason: fairseq has no hook between two updates. Its script is imported under several names.
    Remove when: fairseq gives tasks such a hook.
    """
    for script in ("fairseq_cli.train", "__main__", "__mp_main__"):
        module = sys.modules.get(script)
        stock = getattr(module, "validate_and_save", None)
        if stock is not None and not hasattr(stock, "__wrapped__"):
            wrapped = functools.wraps(stock)(functools.partial(call, stock))
            setattr(module, "validate_and_save", wrapped)  # noqa: B010 (another's module)


def at_end_of_training(call: Callable[[], None]) -> None:
    """Have ``call`` called once when training has ended without an error.

    Reason: fairseq tells nobody; its log line is the only sign that is the same for every launcher.
    Remove when: fairseq gives tasks a hook at the end.
    """
    logging.getLogger("fairseq_cli.train").addHandler(_AtEnd(call))


def show_table(
    common: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """A table of texts to TensorBoard and Weights & Biases, where fairseq logs there.

    Args:
        common: ``cfg.common``.

    Reason: fairseq's progress bars log numbers alone, and keep what they log with to themselves.
    Remove when: they have a method for texts.
    """
    folder, writers = common.tensorboard_logdir, getattr(progress_bar, "_tensorboard_writers", None)
    if folder and writers is not None and progress_bar.SummaryWriter is not None:
        if name not in writers:
            writers[name] = progress_bar.SummaryWriter(os.path.join(folder, name))
        lines = [columns, ["---"] * len(columns), *rows]
        escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines)
        writers[name].add_text(name, "\n".join(f"| {' | '.join(row)} |" for row in escaped), step)
        writers[name].flush()
    wandb = getattr(progress_bar, "wandb", None)
    if common.wandb_project and wandb is not None and wandb.run is not None:
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        wandb.log({name: table}, step=step)


def stored_tokens(
    lines: Any, rows: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each row of an ``MMapIndexedDataset`` the id at one place, ``[rows]``.

    Reason: fairseq's way to a line makes a tensor of it, at ten microseconds a line.
    Remove when: fairseq has a way to many lines at once.
    """
    index = lines._index
    tokens = np.frombuffer(lines._bin_buffer, dtype=index.dtype)
    return tokens[index._pointers[rows] // tokens.itemsize + places].astype(np.int64)


def all_stored_tokens(lines: Any) -> NDArray[Any]:
    """The ids of all lines of an ``MMapIndexedDataset``, one line after the other, not copied.

    Reason: as for :func:`stored_tokens`.
    Remove when: with it.
    """
    return np.frombuffer(lines._bin_buffer, dtype=lines._index.dtype)


def give_dynamic_convolution_one_policy() -> None:
    """Let dynamic convolution give in one pass what it gives step by step.

    Reason: where a kernel is longer than the longest row of a batch, fairseq's
    ``DynamicConv_scripatable`` cuts it to that length before its softmax in the pass over whole
    rows, which trains, and after it in steps, which sample and generate. Kept is the latter: what
    generation does is to be trained. (The former lets a word depend on how long the rest of its row
    is. ``DynamicConv1dTBC``, which it is a copy of, cuts after the softmax in both; its pass over
    whole rows is taken.) It holds for every criterion of a run with this package.
    Remove when: fairseq cuts the kernel after the softmax.
    """
    stock = DynamicConv_scripatable._forward_unfolded
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def cut_after_softmax(self: Any, x: Tensor, incremental_state: Any, query: Tensor) -> Tensor:
        looks_back = self.padding_l == self.kernel_size - 1  # a decoder's
        if incremental_state is None and looks_back and len(x) < self.kernel_size:
            return DynamicConv1dTBC._forward_expanded(self, x, None, query)
        return stock(self, x, incremental_state, query)

    DynamicConv_scripatable._forward_unfolded = cut_after_softmax


def mend_tasks_of_pretrained_models() -> None:
    """Let ``--task translation_from_pretrained_bart`` and ``translation_from_pretrained_xlm`` load
    their data, with any criterion.

    Reason: the former looks for its options where tasks of translation no longer keep them, and
    loading a dictionary of the latter gives it an argument that it does not take.
    Remove when: fairseq's own do.
    """

    def load(cls: Any, file: str, add_special_symbols: bool = True) -> Any:
        dictionary = cls()
        dictionary.add_from_file(file)
        return dictionary

    TranslationFromPretrainedBARTTask.args = property(lambda task: task.cfg)
    MaskedLMDictionary.load = classmethod(load)


def train_in_bf16(parsed: argparse.Namespace, given: argparse.Namespace) -> None:
    """Let ``--bf16`` and ``--memory-efficient-bf16`` train on GPUs and CPUs.

    Reason: fairseq's command line takes bf16 for a TPU's and then fails for want of torch_xla.
    Remove when: it no longer does.

    Args:
        parsed: all options; changed.
        given: what the parser found at first sight.
    """
    asked = getattr(given, "tpu", False) or importlib.util.find_spec("torch_xla")
    if getattr(parsed, "bf16", False) and not asked:
        parsed.tpu = False


def extend_parsing(
    from_start: Callable[[argparse.Namespace], dict[str, Any]],
    explain: Callable[[str, argparse.ArgumentParser, dict[str, Any]], str],
) -> None:
    """Let what a command starts from have a say when its options are parsed, and word its errors.

    Reason: without ``--arch`` fairseq ends in an empty RuntimeError; it has no hook between the
    import of the user directory and that. argparse's errors come after hundreds of lines of usage.
    Remove when: fairseq takes the architecture of a checkpoint itself.

    Args:
        from_start: defaults of options, from those that are known before the architecture is.
        explain: argparse's message to ours, for a parser and the values of its options.
    """
    parse = options.parse_args_and_arch
    if getattr(parse, "extended", False):
        return

    @functools.wraps(parse)
    def parse_args_and_arch(
        parser: argparse.ArgumentParser,
        input_args: Any = None,
        *positional: Any,
        modify_parser: Any = None,
        **keywords: Any,
    ) -> Any:
        chosen: dict[str, Any] = {}
        defaults: dict[str, Any] = {}

        def error(message: str) -> NoReturn:
            parser.exit(2, f"{parser.prog}: error: {explain(message, parser, chosen)}\n")

        def modify(parser: argparse.ArgumentParser) -> None:
            if modify_parser is not None:
                modify_parser(parser)
            parser.set_defaults(**defaults)

        parser.error = error  # type: ignore[method-assign]
        modify(parser)
        given, _ = parser.parse_known_args(input_args)
        defaults.update(from_start(given))
        chosen.update(vars(given), **defaults)
        found = parse(parser, input_args, *positional, modify_parser=modify, **keywords)
        train_in_bf16(found[0] if isinstance(found, tuple) else found, given)
        return found

    parse_args_and_arch.extended = True  # type: ignore[attr-defined]
    options.parse_args_and_arch = parse_args_and_arch


def hide_torchaudio_that_does_not_load() -> None:
    """Let transformers be imported where torchaudio is installed but does not load.

    Reason: fairseq-fixed asks for torchaudio. On Linux the index's is linked with CUDA, beside a
    torch without CUDA its import fails, and so does that of transformers, which takes what is
    installed for what can be imported. scripts/setup_env.sh makes environments without it; this is
    for others.
    Remove when: fairseq-fixed does without it, or the index's loads without CUDA.
    """
    if importlib.util.find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception:  # OSError of the loader, and whatever else a broken binary leads to
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # to Python: not installed


def launch_by(
    prepare: Callable[[Any], None],
    join: Callable[[Any], None],
    guarded: type,
    start_ranks: Callable[..., None],
) -> None:
    """Let us say which rank a training's process is, start or join the ranks, and stand around its
    main.

    Reason: fairseq believes a launcher's environment only where it is told of several ranks, so
    that ``torchrun`` trains copies on CPU and on machines with one GPU; on CPU it starts no process
    at all and ends with exit code 0. It joins the ranks with torch's limits, 30 minutes with gloo,
    and a rank that fails leaves the others without a word. The process that starts the ranks of its
    GPUs ends at a signal, and torch ends ranks that still save.
    Remove when: fairseq follows the environment first, and gives the groups a limit.

    Args:
        prepare: writes into the configuration which rank this process is.
        join: makes the process group.
        guarded: of fairseq's main, is called instead of it.
        start_ranks: takes the place of torch's ``spawn``, given that, what a rank runs, with which
            arguments, and the number of ranks.
    """
    call, init = distributed_utils.call_main, distributed_utils.distributed_init
    start = torch.multiprocessing.spawn
    if hasattr(call, "__wrapped__"):
        return

    @functools.wraps(call)
    def call_main(cfg: Any, main: Any, **keywords: Any) -> Any:
        if not (inspect.getsourcefile(main) or "").endswith("train.py"):
            return call(cfg, main, **keywords)
        prepare(cfg)
        return call(cfg, guarded(main), **keywords)

    @functools.wraps(init)
    def distributed_init(cfg: Any) -> Any:
        join(cfg)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Distributed is already initialized")
            return init(cfg)

    @functools.wraps(start)
    def spawn(fn: Any, args: Any = (), nprocs: int = 1, *rest: Any, **keywords: Any) -> Any:
        if fn is not distributed_utils.distributed_main or not isinstance(args[0], guarded):
            return start(fn, args, nprocs, *rest, **keywords)
        return start_ranks(start, fn, args, nprocs)

    setattr(torch.multiprocessing, "spawn", spawn)  # noqa: B010 (torch is typed)
    distributed_utils.call_main = call_main
    distributed_utils.distributed_init = distributed_init


def take_group(timeout: timedelta) -> None:
    """Let all of fairseq's and our collective operations fail after ``timeout``.

    Reason: fairseq makes its group later and without one; torch has no public name for the limit
    of the group that exists, which was made with another one.
    Remove when: fairseq gives its groups a limit.
    """
    torch.distributed.distributed_c10d._set_pg_timeout(timeout)
    distributed_utils.get_global_group._global_group = torch.distributed.new_group(timeout=timeout)


def ranks_store() -> Any:
    """The store in which the ranks found each other, for the use of another thread.

    Reason: torch has no public name for it.
    Remove when: it has.
    """
    return torch.distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]


def abort_groups() -> None:
    """Have the operations fail in which this rank waits for others. On gloo it does nothing.

    Reason: torch has no public name for it.
    Remove when: it has, or gloo's operations can be interrupted.
    """
    torch.distributed.distributed_c10d._abort_process_group()


def tell_of_progress(
    step: Callable[[str], None],
    part: Callable[[bool], None],
    saving: Callable[[], None],
    watched: Callable[[], bool],
) -> None:
    """Say how far a training is: ``step`` where all ranks begin the same thing, ``part`` where one
    has finished a part of it (True: the last), ``saving`` where one saves; ``watched``
    says whether somebody listens.

    Reason: fairseq's ``--heartbeat-timeout`` counts passes through the model in training alone, so
    that a long validation ends the run, and its signal does not reach a rank that waits for
    another. It is replaced.
    Remove when: fairseq watches all that ranks do together.
    """
    if hasattr(Trainer.train_step, "__tells__"):
        return

    def before(name: str, tell: Callable[[Any], None]) -> None:
        stock = getattr(Trainer, name)

        @functools.wraps(stock)
        def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
            tell(self)
            return stock(self, *arguments, **keywords)

        method.__tells__ = True  # type: ignore[attr-defined]
        setattr(Trainer, name, method)

    def updates(words: str) -> Callable[[Any], None]:
        return lambda trainer: step(words.format(trainer.get_num_updates() + 1))

    before("load_checkpoint", lambda trainer: step("reading the checkpoint"))
    before("get_train_iterator", lambda trainer: step("reading the training data"))
    before("train_step", updates("busy with its batches of update {}"))
    before("valid_step", updates("busy with a batch of the validation before update {}"))
    before("_aggregate_logging_outputs", lambda trainer: part(True))
    before("save_checkpoint", lambda trainer: saving())
    init = Trainer.__init__

    @functools.wraps(init)
    def build(self: Any, cfg: Any, task: Any, model: Any, criterion: Any, *more: Any) -> None:
        init(self, cfg, task, model, criterion, *more)
        criterion.register_forward_hook(lambda *_: part(False))

    Trainer.__init__ = build
    wrapper = distributed_fairseq_model.DistributedTimeoutWrapper
    distributed_fairseq_model.DistributedTimeoutWrapper = lambda module, timeout: (
        module if watched() else wrapper(module, timeout)
    )


def let_ddp_train_on_cpu() -> None:
    """Let ``--ddp-backend pytorch_ddp``, fairseq's default, train on CPU.

    Reason: fairseq gives torch's ``DistributedDataParallel`` the number of a GPU, which it refuses
    for a model that is on none.
    Remove when: fairseq gives it none on CPU.
    """
    stock = distributed_fairseq_model.DistributedDataParallel
    if not isinstance(stock, type):
        return

    @functools.wraps(stock, updated=())
    def on_its_device(module: Any, **keywords: Any) -> Any:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            keywords.update(device_ids=None, output_device=None)
        return stock(module, **keywords)

    distributed_fairseq_model.DistributedDataParallel = on_its_device


def look_at_data_first(
    check: Callable[[str, str, Any], None],
    explain: Callable[[str, Exception], Exception],
) -> None:
    """Refuse damaged data of any task before they are used.

    Reason: fairseq compares no lengths and no numbers, so that a damaged line ends the run in an
    IndexError when its turn comes, or is read as other words; a damaged dictionary's traceback does
    not name the file.
    Remove when: fairseq looks at them.

    Args:
        check: refuses the files of a path and of a ``--dataset-impl`` with a dictionary's words.
        explain: what to raise for what a dictionary's reading raised.
    """
    make, read = indexed_dataset.make_dataset, Dictionary.add_from_file
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def make_dataset(
        path: str, impl: str, fix_lua_indexing: bool = False, dictionary: Any = None
    ) -> Any:
        check(path, impl, dictionary)
        return make(path, impl, fix_lua_indexing, dictionary)

    @functools.wraps(read)
    def add_from_file(self: Any, f: Any) -> Any:
        if not isinstance(f, str):
            return read(self, f)
        try:
            return read(self, f)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a file that is none leads to
            raise explain(f, error) from error

    indexed_dataset.make_dataset = make_dataset
    Dictionary.add_from_file = add_from_file


def keep_place_in_batches(
    state_at: Callable[[Any, dict[str, Any]], dict[str, Any]],
    resumed: Callable[[dict[str, Any], Any], dict[str, Any]],
    dealt_to: Callable[..., list[Any]],
) -> None:
    """Let a run go on in the middle of an epoch on another number of ranks.

    Reason: fairseq's checkpoints count the batches of one rank, so that on other ranks some come
    twice or not at all.
    Remove when: fairseq's checkpoints count those of all.

    Args:
        state_at: adds to an iterator's state what that needs.
        resumed: the state of a checkpoint as an iterator's own.
        dealt_to: an iterator's batches of an epoch, given fairseq's way to them.
    """
    iterator = iterators.EpochBatchIterator
    state_dict, load, order = (
        iterator.state_dict,
        iterator.load_state_dict,
        iterator.ordered_batches,
    )
    if hasattr(load, "__wrapped__"):
        return
    iterator.state_dict = functools.wraps(state_dict)(lambda self: state_at(self, state_dict(self)))
    iterator.load_state_dict = functools.wraps(load)(
        lambda self, state: load(self, resumed(state, self))
    )
    iterator.ordered_batches = functools.wraps(order)(
        lambda self, *how: dealt_to(self, order, *how)
    )
    read = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(read)
    def with_number_of_ranks(*arguments: Any, **keywords: Any) -> Any:
        """Of checkpoints that were made without this; the first rank sends it to the others."""
        state = read(*arguments, **keywords)
        place = (state.get("extra_state") or {}).get("train_iterator")
        cfg = state.get("cfg") or {}
        ranks = (cfg.get("distributed_training") or {}).get("distributed_world_size")
        if place and "order_of" not in place and ranks:
            parts = (cfg.get("common") or {}).get("model_parallel_size") or 1
            place["order_of"] = ranks // parts
        return state

    checkpoint_utils.load_checkpoint_to_cpu = with_number_of_ranks


class _Groups(iterators.GroupedIterator):
    """Groups of batches, counted from where the epoch goes on."""

    def __init__(self, iterable: Any, chunk_size: int, skip_remainder_batch: bool = False):
        super().__init__(iterable, chunk_size)
        used, left = getattr(iterable, "n", 0), len(iterable) - getattr(iterable, "n", 0)
        skip = skip_remainder_batch and left >= chunk_size
        groups = left // chunk_size if skip else -(-left // chunk_size)
        self.total = self.n + groups
        if skip:
            self._itr = iterators._chunk_iterator(iterable, chunk_size, True)
            iterable.take(used + groups * chunk_size)


def make_batches_as_in_the_first_epoch() -> None:
    """Let a run that is resumed in a later epoch have the batches of one never interrupted.

    Reason: fairseq makes batches in the first epoch that a process sees, from a seed with that
    epoch's number, and keeps them for all later epochs.
    Remove when: it makes them from the first epoch's number.
    """
    stock = FairseqTask.get_batch_iterator
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def get_batch_iterator(self: Any, dataset: Any, *rest: Any, **keywords: Any) -> Any:
        made_anew = ("disable_iterator_cache", "update_epoch_batch_itr")
        if not any(map(keywords.get, made_anew)) and self.can_reuse_epoch_itr(dataset):
            keywords["epoch"] = 1
        return stock(self, dataset, *rest, **keywords)

    FairseqTask.get_batch_iterator = get_batch_iterator


def count_groups_of_what_is_left() -> None:
    """Let an epoch that goes on with another ``--update-freq`` end with its last batch.

    Reason: fairseq counts the groups from the epoch's beginning, so that a place between two of
    them loses one at the end, and the epoch is trained twice.
    Remove when: fairseq counts what is left.
    """
    iterators.GroupedIterator = _Groups


def know_own_folder() -> None:
    """Let ``--user-dir`` name this package in any way once it is imported.

    Reason: fairseq compares a path as it is written with that of the imported package. The
    repository, a link, an installed package by its name alone (which fairseq finds as
    ``fairseq/../esrl_fairseq``) end in an ImportError where a program imported this package first,
    as the processes do that fairseq starts for GPUs.
    Remove when: fairseq compares what the paths lead to.
    """
    stock = utils.import_user_module
    if hasattr(stock, "__wrapped__"):
        return
    own = os.path.realpath(os.path.dirname(__file__))
    name = os.path.basename(own)

    def is_own(given: str) -> bool:
        beside = os.path.dirname(utils.__file__)  # where fairseq looks next, and one higher
        places = (os.path.join(*place, given) for place in ([""], [beside], [beside, ".."]))
        place = next(filter(os.path.exists, places), None)
        if place is None:  # as where it is installed editable
            return given == name
        found = os.path.realpath(place)
        if os.path.basename(found) != name:
            return False
        if own not in (found, os.path.realpath(os.path.join(found, name))):
            raise EsrlError(
                f"--user-dir {given} is {found}, but the copy of {name} in {own} is imported "
                f"already: give --user-dir {own}"
            )
        return True

    @functools.wraps(stock)
    def import_user_module(args: Any) -> None:
        given = getattr(args, "user_dir", None)
        if given is None or not is_own(given):
            stock(args)

    utils.import_user_module = import_user_module


COMPILED_FORMS = 256
"""Most compiled forms of a function, after which torch would go on without them."""


def compiled(function: Callable[[], None], backend: Any, cuda_graphs: bool) -> Callable[[], None]:
    """``torch.compile`` of what always has the same shapes, in one graph without breaks.

    Args:
        function: reads and writes memory that is :func:`static`.
        backend: torch.compile's.
        cuda_graphs: let inductor record it as a CUDA graph.

    Reason: torch compiles 8 forms of a function at most, an option that is called
    ``recompile_limit`` since 2.7; ``torch.compile(recompile_limit=...)`` is newer yet.
    Remove when: the oldest torch that is supported has that argument.
    """
    config = importlib.import_module("torch._dynamo").config
    config.cache_size_limit = max(config.cache_size_limit, COMPILED_FORMS)
    mode = "reduce-overhead" if cuda_graphs and backend == "inductor" else None
    run = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, mode=mode)
    if mode is None:
        return run

    def replayed() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        run()

    return replayed


def static(memory: Tensor) -> Tensor:
    """A tensor that compiled functions find at the same place each time, and may write to.

    Reason: a CUDA graph otherwise copies its inputs, and none is recorded of a function that
    writes to them. torch has this in a private module alone.
    Remove when: ``torch.compiler`` has it.
    """
    importlib.import_module("torch._dynamo").mark_static_address(memory)
    return memory


MOVED = {
    "generation": "sampling.generation",
    "steps": "sampling.steps",
    "conditioning": "sampling.conditioning",
    "standard": "rescoring.standard",
    "recompute": "rescoring.recompute",
    "frozen": "rescoring.frozen",
    "scoring": "rewards.scorer",
    "text": "data.text",
    "batches": "data.batches",
    "prompts": "data.prompts",
    "references": "data.references",
    "capability": "state.capability",
    "replay": "state.replay",
    "ranks": "state.ranks",
    "visits": "state.visits",
    "logs": "monitoring.logs",
    "monitor": "monitoring.warnings",
    "validation": "monitoring.validation",
    "sampling_options": "sampling.options",
    "preference": "reward_models.criterion",
    "reward_data": "reward_models.data",
    "reward_model": "reward_models.model",
    "reward_task": "reward_models.task",
}


def keep_old_names() -> None:
    """Let ``import esrl_fairseq.generation`` and the like find the modules where they are now.

    Reason: until November 2026 they lay beside this file, and scripts of users import them there.
    Remove when: version 0.2 is out.
    """
    package = __name__.rpartition(".")[0]
    for old, new in MOVED.items():
        sys.modules[f"{package}.{old}"] = importlib.import_module(f"{package}.{new}")


def apply() -> None:
    """Apply every shim that has to come first; harmless when repeated."""
    allow_fairseq_checkpoints()
    run_no_code_of_checkpoints()
    give_numpy_long_back()
    give_dynamic_convolution_one_policy()
    mend_tasks_of_pretrained_models()
    make_batches_as_in_the_first_epoch()
    count_groups_of_what_is_left()
    let_ddp_train_on_cpu()
    know_own_folder()
