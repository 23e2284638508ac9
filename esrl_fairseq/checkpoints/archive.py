"""Whether a checkpoint is byte for byte what was written, which ``torch.load`` does not check.

``torch.save`` writes a zip archive, in which every member has a checksum (CRC-32). All else in it
is written twice (a member's own header, and the directory at the end) or is the same for all
members, so that every flipped bit shows, those included that no reader would look at.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO

OWN = struct.Struct("<4s5HIIIHH")  # a member's header, before its name
DIRECTORY = struct.Struct("<4s6HIIIHHHHHII")  # its entry in the directory, before its name
LATE = struct.Struct("<4sIII")  # after a member's content
LATE_64 = struct.Struct("<4sIQQ")
END = struct.Struct("<4s4HIIH")
END_64 = struct.Struct("<4sQHHIIQQQQ")
LOCATOR_64 = struct.Struct("<4sIQI")
PADDING = b"FB"  # torch's extra field, by which tensors begin at multiples of 64 bytes
WIDE = 0x0001  # the extra field of numbers that do not fit 32 bits
CHUNK = 1 << 24


class Damaged(Exception):
    """The file is not what was written; its text says where, to follow the file's name."""


@dataclass
class Member:
    """One entry of the archive's directory.

    Attributes:
        version, flags, method, time, date, crc: as in the member's own header.
        size: bytes of its content.
        offset: of its header, from the file's begin.
        rest: what is the same for all members of an archive that one program wrote.
    """

    name: bytes
    version: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    size: int
    offset: int
    rest: tuple[int, ...]


def check_archive(path: str) -> None:
    """Read all of a zip archive, and refuse it if anything is not as it was written.

    An archive that another program packed anew is checked by its members' checksums alone.

    Raises:
        Damaged: it is cut off, or differs from what was written.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if written_by_torch(file):
            members, end = read_directory(file)
            file.seek(0)
            for member in members:
                check_member(file, member)
            if file.tell() != end:
                raise Damaged("is damaged (its directory is not where its last member ends)")
            return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise Damaged(f"is cut off or damaged ({error})") from error
    if bad is not None:
        raise Damaged(f"is damaged (the checksum of {bad} does not fit)")


def written_by_torch(file: IO[bytes]) -> bool:
    """By either of two signs, as one of them may be what is damaged."""
    head = file.read(4096)
    name = head[OWN.size :][:64]
    if len(head) < OWN.size:
        raise Damaged("is cut off")
    length = OWN.unpack_from(head)[-2]
    return b"/data.pkl" in name or head[OWN.size + length :].startswith(PADDING)


def read_directory(file: IO[bytes]) -> tuple[list[Member], int]:
    """The members in the order of the directory, and where the directory begins.

    Raises:
        Damaged: the directory, or what follows it, is not as torch writes them.
    """
    size = file.seek(0, os.SEEK_END)
    tail_size = min(size, END_64.size + LOCATOR_64.size + END.size)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    if not tail[-END.size :].startswith(b"PK\5\6"):
        raise Damaged("is cut off, its end is missing")
    count, length, start = END.unpack(tail[-END.size :])[4:7]
    if tail.startswith(b"PK\6\6") and tail_size == END_64.size + LOCATOR_64.size + END.size:
        count, length, start = END_64.unpack_from(tail)[-3:]
        expected = end_of(count, length, start, wide=True)
    else:
        tail = tail[-END.size :]
        expected = end_of(count, length, start, wide=False)
    if tail != expected or start + length + len(tail) != size:
        raise Damaged("is damaged (at its end)")
    file.seek(start)
    members = parse_directory(file.read(length), count)
    if len({member.rest for member in members}) != 1:
        raise Damaged("is damaged (in its directory)")
    return members, start


def end_of(count: int, length: int, start: int, wide: bool) -> bytes:
    """What follows the directory of ``count`` members, ``length`` bytes from ``start`` on."""
    short = [min(count, 0xFFFF), min(length, 0xFFFFFFFF), min(start, 0xFFFFFFFF)]
    end = END.pack(b"PK\5\6", 0, 0, short[0], *short, 0)
    if not wide:
        return end
    numbers = (0x031E, 45, 0, 0, count, count, length, start)
    long = END_64.pack(b"PK\6\6", END_64.size - 12, *numbers)
    return long + LOCATOR_64.pack(b"PK\6\7", 0, start + length, 1) + end


def parse_directory(raw: bytes, count: int) -> list[Member]:
    """The entries of a directory.

    Raises:
        Damaged: these are no ``count`` entries, to the last byte.
    """
    members, place = [], 0
    try:
        for _ in range(count):
            sign, made, *own, disk, inner, outer, offset = DIRECTORY.unpack_from(raw, place)
            version, flags, method, time, date, crc, packed, size, named, extra, note = own
            place += DIRECTORY.size
            name = raw[place : place + named]
            more = raw[place + named : place + named + extra]
            size, packed, offset = wide_numbers(more, size, packed, offset)
            if sign != b"PK\1\2" or note or packed != size or method or len(name) != named:
                raise Damaged("is damaged (in its directory)")
            place += named + extra
            rest = (made, disk, inner, outer)
            here = (name, version, flags, method, time, date, crc, size, offset, rest)
            members.append(Member(*here))
    except struct.error as error:
        raise Damaged("is damaged (in its directory)") from error
    if place != len(raw) or not members:
        raise Damaged("is damaged (in its directory)")
    return members


def wide_numbers(extra: bytes, *numbers: int) -> list[int]:
    """``numbers``, those that do not fit 32 bits from the extra field, which holds nothing else."""
    missing = [number == 0xFFFFFFFF for number in numbers]
    if not extra:
        if any(missing):
            raise Damaged("is damaged (in its directory)")
        return list(numbers)
    if struct.unpack_from("<HH", extra) != (WIDE, 8 * sum(missing)):
        raise Damaged("is damaged (in its directory)")
    found = iter(struct.unpack(f"<{sum(missing)}Q", extra[4:]))
    return [next(found) if gone else number for gone, number in zip(missing, numbers)]


def check_member(file: IO[bytes], member: Member) -> None:
    """Compare the member that follows in the file with its entry and its checksum.

    Raises:
        Damaged: it differs.
    """
    where = member.name.decode("utf-8", "replace")
    damaged = Damaged(f"is damaged ({where} is not what was written)")
    if file.tell() != member.offset:
        raise damaged
    head = file.read(OWN.size)
    if len(head) < OWN.size:
        raise damaged
    sign, version, flags, method, time, date, crc, packed, size, named, extra = OWN.unpack(head)
    late = bool(flags & 8)  # checksum and size stand after the content
    numbers = (member.version, member.flags, member.method, member.time, member.date)
    known = (0, 0, 0) if late else (member.crc, member.size, member.size)
    if sign != b"PK\3\4" or (version, flags, method, time, date) != numbers:
        raise damaged
    wide = not late and member.size >= 0xFFFFFFFF
    if (crc, packed, size) != known and not wide:
        raise damaged
    if file.read(named) != member.name or not is_padding(file.read(extra), extra):
        raise damaged
    if checksum(file, member.size) != member.crc:
        raise damaged
    place = file.tell()
    for form in (LATE_64, LATE) if late else ():
        file.seek(place)
        end = form.pack(b"PK\7\x08", member.crc, member.size, member.size)
        if file.read(form.size) == end:
            return
    if late:
        raise damaged


def is_padding(extra: bytes, length: int) -> bool:
    """Whether a member's extra field is as torch fills it: zip64 numbers, if any, then Z's."""
    if len(extra) == length and extra[:2] == struct.pack("<H", WIDE) and len(extra) >= 4:
        extra = extra[4 + struct.unpack_from("<H", extra, 2)[0] :]
    if len(extra) < 4 or extra[:2] != PADDING:
        return False
    fill = extra[4:]
    return len(fill) == struct.unpack_from("<H", extra, 2)[0] and not fill.strip(b"Z")


def checksum(file: IO[bytes], size: int) -> int:
    """CRC-32 of the next ``size`` bytes; of fewer where the file ends before."""
    crc = 0
    while size > 0:
        part = file.read(min(size, CHUNK))
        if not part:
            return ~crc & 0xFFFFFFFF  # does not fit
        crc = zlib.crc32(part, crc)
        size -= len(part)
    return crc
