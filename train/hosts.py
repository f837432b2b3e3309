"""How the machines of a job find each other: by the route to the rendezvous, not by their host names.

torchrun and gloo look up the machine's own name, which on many machines is 127.0.1.1 and in containers nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from syncflow.errors import UserError

JOIN_S = 600


@dataclass(frozen=True)
class Meeting:
    """This machine, seen from the rendezvous."""

    address: str
    """Its own, on the network that leads there."""
    interface: str
    """Name of the network interface with that address; empty if none has it."""
    is_host: bool
    """Whether the rendezvous is here, and nobody serves it yet."""


def meet(rendezvous: str, wait_s: float = 0) -> Meeting:
    """How to get to HOST:PORT; its name may take up to `wait_s` to be known (a pod has one once it is scheduled).

    Raises:
        UserError: `rendezvous` is not HOST:PORT, or its host cannot be found or reached.
    """
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"rendezvous {rendezvous!r}: give HOST:PORT of the first machine")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            family, kind, _, _, there = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(there)  # chooses the route; nothing is sent
                address = probe.getsockname()[0]
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(f"rendezvous {rendezvous}: this machine cannot reach it ({error})") from error
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    is_host = False
    if address == there[0]:
        with contextlib.suppress(OSError), socket.create_server((address, int(port)), family=family):
            is_host = True
    return Meeting(address, _interface_of(address), is_host)


def _interface_of(address: str) -> str:
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return ""
