"""Every flipped bit and every cut shows."""

import os
import random
import zipfile

import pytest
import torch
from saving import state_after

from esrl_fairseq.checkpoints.archive import Damaged, check_archive
from esrl_fairseq.checkpoints.reading import problem_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.pt"
    torch.save(state_after(3, size=3), path)
    return path


def is_refused(path, content):
    path.write_bytes(content)
    problem = problem_of(str(path))
    assert not problem or problem.startswith(("is ", "does ", "holds "))
    return bool(problem)


def test_every_byte_is_looked_at(written, tmp_path):
    """One flipped bit in each byte, headers and padding included; which bit changes."""
    raw = written.read_bytes()
    check_archive(str(written))
    path = tmp_path / "flipped.pt"
    path.write_bytes(raw)
    accepted = []
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(raw):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            os.utime(path, ns=(place, place))
            if not problem_of(str(path)):
                accepted.append(place)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert len(raw) > 1800 and not accepted


def test_every_cut_is_seen(written, tmp_path):
    raw = written.read_bytes()
    cuts = [*range(0, len(raw), 7), *range(len(raw) - 100, len(raw))]
    assert all(is_refused(tmp_path / "cut.pt", raw[:size]) for size in cuts)
    assert is_refused(tmp_path / "more.pt", raw + b"\0")
    assert is_refused(tmp_path / "hole.pt", raw[:500] + bytes(400) + raw[900:])


def test_archives_of_other_programs(written, tmp_path):
    """Packed anew they are read, and the checksums of their members hold."""
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    check_archive(str(path))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="damaged"):
        check_archive(str(path))


def test_flips_among_many_members(tmp_path):
    """300 bits of a checkpoint of 200 tensors, of many kinds."""
    kinds = [torch.float16, torch.float32, torch.int64, torch.bool, torch.bfloat16]
    state = {str(i): torch.ones(i % 50, dtype=kinds[i % 5]) for i in range(200)}
    torch.save(state, tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    check_archive(str(tmp_path / "a.pt"))
    rng = random.Random(7)
    for _ in range(300):
        content = bytearray(raw)
        content[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        assert is_refused(tmp_path / "flipped.pt", content)


@pytest.mark.long
def test_archives_that_need_64_bits(tmp_path):
    """One tensor of more than 4 GiB, and members that begin behind 4 GiB."""
    for tensors in (1, 3):
        state = {
            str(i): torch.zeros(2**32 // tensors + 100, dtype=torch.int8) for i in range(tensors)
        }
        path = str(tmp_path / "big.pt")
        torch.save({**state, "last": torch.ones(3)}, path)
        check_archive(path)
        with open(path, "r+b") as file:
            file.seek(2**32 + 50)
            file.write(b"\1")
        with pytest.raises(Damaged):
            check_archive(path)
