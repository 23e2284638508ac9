"""A signal ends a run between two updates, with everything saved: the same command goes on.

Schedulers send SIGTERM or SIGUSR1 some seconds before they kill, and Ctrl-C is SIGINT. What has to
be saved is whole only between two updates, and all ranks have to end after the same one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch.distributed as dist
from fairseq import checkpoint_utils
from omegaconf import open_dict

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 0.3  # seconds in which a further signal is the same one, which launchers pass on, too


class LeaveValidation(BaseException):
    """Ends a validation that the resumed run makes up for."""


class Stop:
    """Whether the run is to end, and how.

    Attributes:
        signal: that this process got; 0 without one.
        agreed: that all ranks know of; 0 without one.
        training: whether there can be anything to save.
        leaves: whether a validation is left for it.
        over: whether all is saved, and this process ends; who waits for it may signal it again.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.agreed = 0
        self.training = False
        self.leaves = False
        self.over = False
        self.previous: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on a signal is heard; those that a program handles itself are left to it."""
        if self.previous or threading.current_thread() is not threading.main_thread():
            return
        own = (signal.SIG_DFL, signal.default_int_handler)
        self.previous = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) in own}
        for number in self.previous:
            signal.signal(number, self.hear)
        ears, mouth = os.pipe()
        os.set_blocking(mouth, False)
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        threading.Thread(target=self.watch, args=(ears,), daemon=True).start()
        os.register_at_fork(after_in_child=self.forget)

    def begin(self, trainer: Any) -> None:
        """The updates follow."""
        self.training = self.leaves = True

    def flag(self) -> float:
        """1 where this process has got a signal; ranks sum it."""
        return float(self.signal > 0)

    def forget(self) -> None:
        """After the run, and in processes that it starts: signals do what they did before it."""
        if not self.previous:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.__init__()  # type: ignore[misc]

    def hear(self, number: int, frame: Any) -> None:
        """The handler, between two steps of the interpreter."""
        if self.signal or self.over:
            return  # see watch
        self.signal = number
        if not self.training:
            say(f"{name(number)}: ends before the first update, there is nothing to save")
            raise SystemExit(128 + number)
        say(
            f"{name(number)}: the run ends when the current update is over and saved (a second "
            "signal ends it at once)"
        )

    def watch(self, ears: int) -> None:
        """A second signal ends the process at once, whatever it waits for.

        Args:
            ears: where the numbers of signals can be read.
        """
        first = 0.0
        while True:
            for number in os.read(ears, 64):
                if number not in self.previous:
                    continue
                now = time.monotonic()
                first = first or now
                if now - first > AGAIN:
                    if not self.over:
                        say(f"{name(number)} again: ends at once")
                    os._exit(128 + (self.agreed if self.over else number))

    def tell(self, ranks: float) -> None:
        """``ranks`` have got a signal, as all of them know after the same update."""
        if ranks and not self.agreed:
            self.agreed = self.signal or signal.SIGTERM

    def known(self, trainer: Any) -> int:
        """The signal that ends the run now, on every rank; 0 without one."""
        return self.signal if trainer.data_parallel_world_size == 1 else self.agreed

    def validated(self, trainer: Any) -> None:
        """A batch of a validation is over."""
        if self.leaves and makes_up(trainer.task) and self.known(trainer):
            raise LeaveValidation

    def at_update(self, stock: Callable[..., Any], *given: Any) -> Any:
        """After an update: validate and save as fairseq does, or end the run.

        Args:
            stock: fairseq's ``validate_and_save``.
            given: its arguments.
        """
        cfg, trainer, task, epoch_itr, _, end_of_epoch = given
        now = (cfg, trainer, epoch_itr, end_of_epoch)
        due, last = False, is_last(*now)
        if last or not self.known(trainer):
            self.leaves = not last
            try:
                return stock(*given)
            except LeaveValidation:
                due = True
        due = due or validates(*now)
        if due and makes_up(task):
            task.outcome.due, task.outcome.due_best = True, saves(*now)
        with open_dict(cfg):
            cfg.checkpoint.no_last_checkpoints = False  # without one, nothing might be saved
        path = checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
        if due and not makes_up(task):
            self.leaves = False
            stock(*given)
        self.end(trainer, path)

    def end(self, trainer: Any, path: str | None) -> NoReturn:
        """Leave together: a launcher ends all ranks as soon as one has left.

        Args:
            path: of what was saved, on the ranks that save.
        """
        if dist.is_initialized():
            dist.barrier()
        number, updates = self.known(trainer), trainer.get_num_updates()
        self.agreed, self.over = number, True
        if path is not None:
            logger.warning(
                "%s: ended after update %d, whose state is in %s: the same command goes on",
                *(name(number), updates, trainer.cfg.checkpoint.save_dir),
            )
        raise SystemExit(128 + number)


def makes_up(task: Any) -> bool:
    """Whether a resumed run validates first where the validation is due (:class:`run.Run`)."""
    return getattr(task, "run", None) is not None


def is_last(cfg: Any, trainer: Any, epoch_itr: Any, end_of_epoch: bool) -> bool:
    """Whether the run is over after this update in any case."""
    most = cfg.optimization.max_update
    if most and trainer.get_num_updates() >= most:
        return True
    epochs = cfg.optimization.max_epoch
    return bool(end_of_epoch and epochs and epoch_itr.epoch >= epochs)


def saves(cfg: Any, trainer: Any, epoch_itr: Any, end_of_epoch: bool) -> bool:
    """Whether fairseq saves after this update."""
    updates, interval = trainer.get_num_updates(), cfg.checkpoint.save_interval_updates
    if end_of_epoch and epoch_itr.epoch % cfg.checkpoint.save_interval == 0:
        return True
    late = updates >= cfg.dataset.validate_after_updates
    return bool(interval > 0 and updates % interval == 0 and late)


def validates(cfg: Any, trainer: Any, epoch_itr: Any, end_of_epoch: bool) -> bool:
    """Whether fairseq validates after this update."""
    updates, interval = trainer.get_num_updates(), cfg.dataset.validate_interval_updates
    if cfg.dataset.disable_validation or updates < cfg.dataset.validate_after_updates:
        return False
    if end_of_epoch and epoch_itr.epoch % cfg.dataset.validate_interval == 0:
        return True
    if not end_of_epoch and saves(cfg, trainer, epoch_itr, end_of_epoch):
        return True
    return bool(interval > 0 and updates % interval == 0)


def obey_parent_alone() -> None:
    """In a process that loads data: let signals end it only if the run sent them.

    Ctrl-C and schedulers signal all processes at once, and the run finishes its update first.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while True:
            if (got := signal.sigwaitinfo(SIGNALS)).si_pid == parent:
                os._exit(128 + got.si_signo)

    threading.Thread(target=wait, daemon=True).start()


def name(number: int) -> str:
    return signal.Signals(number).name


def say(sentence: str) -> None:
    """To stderr, in a handler: logging may be in the midst of a line."""
    os.write(2, f"{sentence}\n".encode())


STOP = Stop()
"""That of this process."""
