"""Masters with labels, in this process and in others, and who else may have their ports."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from conftest import Program, World, wait_until

from masterslave.errors import ConnectionFailed
from masterslave.keyfile import load_key
from masterslave.master import MasterProcess
from masterslave.naming import connect
from masterslave.settings import Settings

# A master on its own: says where it is, and ends when it is told to by a file.
MASTER = """
    import os, sys, time
    from dataclasses import replace
    from masterslave import MasterProcess, Settings

    label, port = sys.argv[1], int(sys.argv[2])
    settings = replace(Settings.from_environment(), renewal_s=0.1, port=port)
    master = MasterProcess(label, settings=settings)
    print(master.address, flush=True)
    while not os.path.exists("end " + label):
        time.sleep(0.01)
    master.shutdown()
"""


def start_master(world: World, label: str, port: int = 0) -> Program:
    program = world.script(MASTER, label, port, name="master.py")
    wait_until(lambda: "\n" in program.out or program.poll() is not None, "the master is there")
    return program


def end_master(world: World, program: Program, label: str) -> None:
    world.write(f"end {label}", "")
    program.finish()


def settings_here(**changes: Any) -> Settings:
    return replace(Settings.from_environment(), renewal_s=0.1, **changes)


@contextlib.contextmanager
def master(label: str, *, use_name_server: bool = True, **changes: Any) -> Iterator[MasterProcess]:
    """A master in this process."""
    process = MasterProcess(label, use_name_server, settings=settings_here(**changes))
    try:
        yield process
    finally:
        process.shutdown()


def find(label: str, master_host: str | None = None) -> str:
    """Look a label up as a slave does that has no connection file of it; gives the label that the
    task manager says it has.
    """
    settings = replace(Settings.from_environment(), connections=None)
    link = connect(label, master_host, settings, load_key(settings.key_file))
    try:
        return str(link.call("status")["label"])
    finally:
        link.close()


def can_be_found(label: str) -> bool:
    try:
        return find(label) == label
    except ConnectionFailed:
        return False


def wait_for_end(sock: socket.socket) -> None:
    while sock.recv(1000):
        pass


def speak_http(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100)
    wait_for_end(sock)


def speak_at_once_and_leave(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")


def leave(sock: socket.socket) -> None:
    pass


def speak_the_next_version(sock: socket.socket) -> None:
    sock.sendall(b"MSL\x63" + b"x" * 64)
    wait_for_end(sock)
