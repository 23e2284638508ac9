"""Whatever breaks a save, every checkpoint is whole and the run goes on from the newest."""

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from saving import Trainer, save, updates

from esrl_fairseq.checkpoints import archive, writing
from esrl_fairseq.checkpoints.reading import own_last, problem_of
from esrl_fairseq.errors import EsrlError

KEPT = ["checkpoint_1_2.pt", "checkpoint_1_3.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
REAL = SimpleNamespace(
    open=open, fsync=os.fsync, replace=os.replace, link=os.link, remove=os.remove
)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The disk itself is not waited for, but asked something that is soon answered."""
    monkeypatch.setattr(os, "fsync", os.fstat)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def nothing_is_lost(folder, before, now):
    """Every checkpoint is whole, and the run goes on from the save before or from this one."""
    for path in folder.glob("*.pt"):
        assert not problem_of(str(path)), path
        assert updates(path) in range(1, now + 1)
    assert updates(own_last(str(folder))) in (before, now)


def goes_on(folder, update):
    """The next start tidies up, and saves."""
    writing.remove_leftovers(str(folder))
    save(folder, update)
    assert files(folder) == KEPT and updates(folder / "checkpoint_last.pt") == update


def test_what_is_kept(tmp_path):
    for update in (1, 2, 3):
        save(tmp_path, update)
    assert files(tmp_path) == KEPT
    assert [updates(tmp_path / name) for name in KEPT] == [2, 3, 3, 3]
    # A copy, so that what damages one of them leaves the others.
    assert len({os.stat(tmp_path / name).st_ino for name in KEPT}) == 4


# Kills

LOOKS = "read readinto seek tell fileno fspath readable seekable".split()


def killed(folder, update, at):
    """Save in a process of its own that dies before its request number ``at`` to the system.

    Requests are the functions of os and the methods of files, those that only look left out.

    Returns:
        How many requests there were where it came to its end, and None where it died.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        requests = 0

        def count(frame, event, called):
            nonlocal requests
            if event != "c_call" or called.__name__ in LOOKS:
                return
            of_a_file = isinstance(getattr(called, "__self__", None), io.IOBase)
            if of_a_file or called.__module__ in ("posix", "io", "_io", "fcntl"):
                requests += 1
                if requests == at:
                    os._exit(9)

        sys.setprofile(count)
        try:
            save(folder, update)
        finally:
            sys.setprofile(None)
            os.write(write, str(requests).encode())
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return int(told) if told else None


@pytest.mark.long
def test_kills(tmp_path):
    """Before each request of a save to the operating system."""
    folder = tmp_path / "run"
    save(folder, 1)
    save(folder, 2)
    total = killed(folder, 2, 0)
    shutil.copytree(folder, tmp_path / "before")
    left = 0
    for number in range(1, total + 1):
        killed(folder, 3, number)
        nothing_is_lost(folder, 2, 3)
        left += any(name.endswith(".partial") for name in files(folder))
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
    assert total >= 100 and left > 20
    killed(folder, 3, total // 2)
    goes_on(folder, 3)


# Full disks


class Disk:
    """A disk that refuses the operations whose numbers ``full`` has.

    Args:
        monkeypatch: pytest's.
    """

    def __init__(self, monkeypatch, full, error=errno.ENOSPC):
        self.count, self.full, self.error = 0, full, error
        disk = self

        class File(io.FileIO):
            def write(self, data):
                half = memoryview(data).cast("B")
                if disk.refuses():
                    super().write(half[: len(half) // 2])
                    raise OSError(error, os.strerror(error))
                return super().write(data)

        def opened(path, mode="r", *more, **options):
            if "x" not in mode:
                return open(path, mode, *more, **options)
            self.check()
            return File(path, "x")

        monkeypatch.setattr(writing, "open", opened, raising=False)
        for name in ("fsync", "replace", "link"):
            monkeypatch.setattr(os, name, self.checked(getattr(os, name)))
        monkeypatch.setattr(writing, "PAUSES", [0, 0])

    def refuses(self):
        self.count += 1
        return self.count in self.full

    def check(self):
        if self.refuses():
            raise OSError(self.error, os.strerror(self.error))

    def checked(self, call):
        def checking(*arguments, **keywords):
            self.check()
            return call(*arguments, **keywords)

        return checking


def operations(folder, monkeypatch):
    """How many operations a save asks of the disk."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, ())
        save(folder, 3)
    return disk.count


@pytest.mark.parametrize("lasting", [True, False], ids=["full", "comes and goes"])
def test_full_disk(lasting, tmp_path, monkeypatch, caplog):
    """At each operation of a save, for good or for that one alone."""
    folder = tmp_path / "run"
    save(folder, 1)
    save(folder, 2)
    total = operations(folder, monkeypatch)
    assert total > 50
    refused = 0
    for name in files(folder):
        os.remove(folder / name)
    save(folder, 1)
    save(folder, 2)
    shutil.copytree(folder, tmp_path / "before")
    for number in range(1, total + 1):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
        with monkeypatch.context() as patch:
            Disk(patch, range(number, 10**6) if lasting else (number,))
            try:
                save(folder, 3)
                saved = True
            except EsrlError as error:
                saved = False
                refused += 1
                assert "no space is left on its disk" in str(error) and "MB are free" in str(error)
        nothing_is_lost(folder, 2, 3)
        assert not any(name.endswith(".partial") for name in files(folder))
        if saved:
            assert files(folder) == KEPT and updates(folder / "checkpoint_last.pt") == 3
        else:
            assert "checkpoint_1_1.pt" in files(folder)  # kept until the new one is whole
    # A full disk ends the run; where space comes back, the next attempt saves.
    assert refused == (total if lasting else 0)
    assert ("it is tried again" in caplog.text) and (lasting or "hard link" in caplog.text)
    goes_on(folder, 3)


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_other_errors(error, tmp_path, monkeypatch):
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        Disk(patch, range(1, 10**6), error)
        with pytest.raises(EsrlError, match="checkpoint_1_3.pt cannot be saved: ") as refused:
            save(tmp_path, 3)
    full = error == errno.EDQUOT
    assert ("make room" if full else os.strerror(error)) in str(refused.value)
    assert updates(tmp_path / "checkpoint_last.pt") == 2 and "checkpoint_1_3.pt" not in files(
        tmp_path
    )


def test_nothing_hides_the_error_that_fairseq_writes_a_crash_for(tmp_path, monkeypatch, caplog):
    Disk(monkeypatch, range(1, 10**6))
    writing.save_checkpoint({}, str(tmp_path / "crash.pt"))
    assert "crash.pt cannot be saved: no space" in caplog.text and not files(tmp_path)


def test_a_copy_where_there_is_no_room(tmp_path, monkeypatch, caplog):
    """It is a hard link, and the older content of the name is kept until then."""
    for name, update in (("new.pt", 3), ("checkpoint_last.pt", 2)):
        writing.save_checkpoint({"update": update}, str(tmp_path / name))
    names = [str(tmp_path / name) for name in ("new.pt", "checkpoint_last.pt")]
    with monkeypatch.context() as patch:
        Disk(patch, (2,))  # the copy's content
        assert writing.copy_checkpoint(*names)
    assert os.path.samefile(*names) and "is a hard link to it" in caplog.text
    assert writing.copy_checkpoint(*names)  # it is there already
    assert files(tmp_path) == ["checkpoint_last.pt", "new.pt"]


def test_what_the_disk_gives_back_is_compared(tmp_path, monkeypatch):
    """A disk that changes what is written to it."""

    class File(io.FileIO):
        def write(self, data):
            return super().write(bytes(data).replace(b"\0\0\0\0", b"\0\0\1\0"))

    path = str(tmp_path / "a.pt")
    writing.save_checkpoint({"a": torch.zeros(3)}, path)
    before = open(path, "rb").read()
    monkeypatch.setattr(writing, "PAUSES", [])
    monkeypatch.setattr(writing, "open", lambda path, mode: File(path, mode), raising=False)
    with pytest.raises(EsrlError, match="cannot be saved: is damaged"):
        writing.save_checkpoint({"a": torch.zeros(300)}, path)
    assert open(path, "rb").read() == before and files(tmp_path) == ["a.pt"]


def test_a_copy_of_a_damaged_file(tmp_path):
    """One sentence that names it, and the older content stays."""
    for name, update in (("new.pt", 3), ("checkpoint_best.pt", 2)):
        writing.save_checkpoint({"update": update}, str(tmp_path / name))
    new = tmp_path / "new.pt"
    raw = bytearray(new.read_bytes())
    raw[raw.index(b"update") + 2] ^= 1
    new.write_bytes(raw)
    best = tmp_path / "checkpoint_best.pt"
    before = best.read_bytes()
    with pytest.raises(EsrlError, match=f"{best} cannot be saved: is damaged"):
        writing.copy_checkpoint(str(new), str(best))
    assert best.read_bytes() == before and files(tmp_path) == ["checkpoint_best.pt", "new.pt"]


@pytest.mark.parametrize("sign", [1, -1])
def test_best_checkpoints_of_rewards_below_zero(sign, tmp_path):
    """Of --keep-best-checkpoints the others are found again by fairseq, and in order."""
    values = [sign * number / 1000 for number in (120, 125, 99)]
    for value in values:
        (tmp_path / f"checkpoint.best_reward_{value:.3f}.pt").touch()
    pattern = r"checkpoint\.best_{}_(\d+\.?\d*){}\.pt".format("reward", "")
    found = checkpoint_utils.checkpoint_paths(str(tmp_path), pattern=pattern)
    assert [float(name.rpartition("_")[2][:-3]) for name in found] == sorted(values)[::-1]


def test_a_state_that_cannot_be_saved_is_no_matter_of_the_disk(tmp_path):
    with pytest.raises((AttributeError, TypeError, Exception), match="(?i)pickle") as refused:
        writing.save_checkpoint({"a": lambda: 0}, str(tmp_path / "a.pt"))
    assert not isinstance(refused.value, EsrlError) and not files(tmp_path)


def test_checksums_are_written_where_a_program_switched_them_off(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        writing.save_checkpoint({"a": torch.zeros(3)}, str(tmp_path / "a.pt"))
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    archive.check_archive(str(tmp_path / "a.pt"))


# What a killed run leaves


def test_leftovers(tmp_path):
    """Those of a run that lives are left alone, and files that only look similar."""
    dead, alive = (tmp_path / f"checkpoint_1_2.pt.{digit * 16}.partial" for digit in "ab")
    others = [tmp_path / name for name in ("a.partial", "capability.0.store.12.partial", "a.pt")]
    for path in [dead, alive, *others]:
        path.touch()
    with open(alive, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writing.remove_leftovers(str(tmp_path))
    assert not dead.exists() and alive.exists() and all(path.exists() for path in others)


def begin(folder, **options):
    cfg = SimpleNamespace(save_dir=str(folder), no_save=False, **options)
    trainer = Trainer(0)
    trainer.cfg, trainer.model = SimpleNamespace(checkpoint=cfg), torch.nn.Linear(100, 100)
    writing.begin_saving(trainer)


def test_a_disk_with_less_room_than_the_parameters(tmp_path, monkeypatch, caplog):
    begin(tmp_path)
    begin(tmp_path / "not there")
    assert not caplog.records
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=30_000))
    begin(tmp_path)
    assert "0.0 MB free" in caplog.text and "no checkpoint can be saved" in caplog.text


def test_writing_in_the_background_is_refused(tmp_path):
    with pytest.raises(EsrlError, match="--write-checkpoints-asynchronously .* leave it out"):
        begin(tmp_path, write_checkpoints_asynchronously=True)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_kills_at_system_calls(tmp_path):
    """At every one of two saves that concerns files."""
    folder = tmp_path / "run"
    save(folder, 1)
    save(folder, 2)
    shutil.copytree(folder, tmp_path / "before")
    number, reached = 0, 2
    while True:
        number += 1
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGSTOP)
            save(folder, 3)
            save(folder, 4)
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        inject = f"inject=%file,%desc:signal=SIGKILL:when={number}"
        tracer = subprocess.Popen(
            ["strace", "-p", str(pid), "-e", "trace=%file,%desc", "-e", inject],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "attached" in tracer.stderr.readline()
        os.kill(pid, signal.SIGCONT)
        tracer.communicate()
        _, status = os.waitpid(pid, 0)
        found = updates(own_last(str(folder)))
        assert found >= reached
        reached = found
        nothing_is_lost(folder, found, 4)
        if os.WIFEXITED(status):
            break
        writing.remove_leftovers(str(folder))
        save(folder, 5)
        assert len(files(folder)) == 4 and updates(folder / "checkpoint_last.pt") == 5
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
    assert number > 100 and reached == 4


@pytest.mark.long
def test_a_small_disk(tmp_path):
    """Of every size between too small for one checkpoint and large enough for all of them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    subprocess.run(["umount", str(disk)], check=True)
    saved = []
    pauses, writing.PAUSES = writing.PAUSES, [0, 0]
    try:
        for pages in range(20, 140):
            size = f"size={pages * 4}k"
            subprocess.run([*probe[:4], size, "tmpfs", str(disk)], check=True)
            try:
                saved.append(saves_that_fit(disk / "run"))
            finally:
                subprocess.run(["umount", str(disk)], check=True)
    finally:
        writing.PAUSES = pauses
    assert saved == sorted(saved) and saved[0] < 2 and saved[-1] == 4


def saves_that_fit(folder):
    """Save until the disk is full, or four times; nothing is lost at any time."""
    folder.mkdir()
    for update in range(1, 5):
        try:
            save(folder, update, size=8000)
        except EsrlError as error:
            assert "no space is left" in str(error)
            if update > 1:
                nothing_is_lost(folder, update - 1, update)
            return update - 1
        nothing_is_lost(folder, update, update)
    return 4
