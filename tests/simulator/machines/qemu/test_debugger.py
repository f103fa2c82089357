"""The debugger's client beside answers that QEMU has given; no QEMU runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from simulator.machines.qemu.debugger import Debugger, QemuError

FEATURES = "qXfer:features:read:target.xml:0,40"
TARGET = 'm<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><'
IDLE = 0x2101DCCC
STOPPED = "T05thread:01;"

Dialogue = Sequence[tuple[str, str]]
"""(command, answer); an answer may be empty, which QEMU says of what it doesn't know."""


@contextmanager
def debugged(dialogue: Dialogue) -> Iterator[Callable[[], Debugger]]:
    """A stub that expects these commands in this order, and answers in pieces of three bytes."""
    ours, theirs = socket.socketpair()
    heard: list[str] = []

    def answer() -> None:
        with theirs:
            for command, said in [(FEATURES, TARGET), *dialogue]:
                data = theirs.recv(4096).decode()
                heard.append(data)
                if data != framed(command):
                    return
                reply = "+" + framed(said)
                for start in range(0, len(reply), 3):
                    theirs.sendall(reply[start : start + 3].encode())

    thread = threading.Thread(target=answer)
    thread.start()
    yield lambda: Debugger(ours)
    ours.close()
    thread.join()
    assert heard == [framed(FEATURES), *(framed(command) for command, _ in dialogue)]


def framed(packet: str) -> str:
    return f"${packet}#{sum(packet.encode()) & 0xFF:02x}"


def test_registers_and_memory_are_little_endian() -> None:
    with debugged([("p0", "10270000"), ("m40028018,4", "0d000000"), ("P0=05000000", "OK")]) as made:
        debugger = made()
        assert debugger.register(0) == 10_000
        assert debugger.read_word(0x40028018) == 13
        debugger.set_register(0, 5)


def test_memory_of_any_size_is_read_in_packets_that_the_stub_can_hold() -> None:
    with debugged([("m20000000,7ff", "a5" * 0x7FF), ("m200007ff,2", "0102")]) as made:
        assert made().read_memory(0x20000000, 0x801) == b"\xa5" * 0x7FF + b"\x01\x02"


def test_a_core_that_stands_at_a_breakpoint_steps_over_it_before_it_goes_on() -> None:
    at_it, behind = "ccdc0121", "cedc0121"
    with debugged(
        [
            (f"Z1,{IDLE:x},2", "OK"),
            ("pf", at_it),
            ("s", STOPPED),
            ("c", STOPPED),
            ("pf", behind),
            ("c", STOPPED),
        ]
    ) as made:
        debugger = made()
        debugger.set_breakpoint(IDLE)
        debugger.set_breakpoint(IDLE)
        for _ in range(2):
            debugger.go_on()
            assert debugger.running
            assert debugger.wait(60.0)
            assert not debugger.running


def test_a_core_may_go_on_somewhere_else() -> None:
    with debugged([("c60000101", STOPPED)]) as made:
        debugger = made()
        debugger.go_on_at(0x60000101)
        assert debugger.running
        assert debugger.wait(60.0)


def test_a_core_that_has_not_stopped_in_time_runs_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(framed(TARGET).encode())
        debugger = Debugger(ours)
        debugger.running = True
        assert not debugger.wait(0.0)
        assert debugger.running


@pytest.mark.parametrize("refusal", ["E22", ""])
def test_what_the_stub_refuses_is_an_error_with_the_command(refusal: str) -> None:
    with debugged([("p0", refusal)]) as made:
        debugger = made()
        with pytest.raises(QemuError, match="refuses 'p0'"):
            debugger.register(0)


def test_a_stub_that_goes_away_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(QemuError, match=r"gone|closed"):
            Debugger(ours)
