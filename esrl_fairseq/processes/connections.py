"""The sockets between the ranks, so that a rank that waits in vain can be woken."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch.distributed as dist

from esrl_fairseq.compat import abort_groups

SOCKETS = "/proc/self/fd"


def open_sockets() -> dict[int, str]:
    """Numbers of this process's sockets, and what the system calls them."""
    found = {}
    for name in os.listdir(SOCKETS) if os.path.isdir(SOCKETS) else []:
        try:
            target = os.readlink(f"{SOCKETS}/{name}")
        except OSError:
            continue  # closed since
        if target.startswith("socket:"):
            found[int(name)] = target
    return found


class Connections:
    """What a group of ranks talks through.

    Args:
        before: sockets that were open before the group was made.
        port: of the ranks' store, whose connections stay.
    """

    def __init__(self, before: dict[int, str], port: int | None):
        new = open_sockets().items() - before.items()
        self.sockets = dict(new)
        self.port = port

    def close(self) -> None:
        """Have what waits for another rank fail: in Python it cannot be interrupted."""
        if dist.is_initialized() and dist.get_backend() != "gloo":
            abort_groups()
        still_open = open_sockets()
        for number, name in self.sockets.items():
            if still_open.get(number) == name:
                self.shut(number)

    def shut(self, number: int) -> None:
        """One of them, unless it is the store's or nothing is connected to it."""
        try:
            with socket.socket(fileno=os.dup(number)) as other:
                if other.family not in (socket.AF_INET, socket.AF_INET6):
                    return
                if self.port in (port_of(other.getsockname()), port_of(other.getpeername())):
                    return
                other.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected, or closed by the main thread, which noticed the one before


def port_of(address: Any) -> int:
    """Of an internet address."""
    return int(address[1])
