"""A node's connection: the test is the node."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from simulator.machines.protocol import TrafficCount
from simulator.machines.renode.node_line import NodeLine


class Node:
    """The other end."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.socket = socket.create_connection(listener.getsockname())
        self.line = NodeLine(listener.accept()[0])
        listener.close()

    def says(self, kind: bytes, payload: bytes) -> None:
        self.socket.sendall(kind + struct.pack(">H", len(payload)) + payload)

    def counts(self, kind: bytes, head: int, value: int) -> None:
        self.says(kind, bytes([head]) + value.to_bytes(8, "big"))

    def hears(self) -> tuple[bytes, bytes]:
        head = self.socket.recv(3, socket.MSG_WAITALL)
        length = int.from_bytes(head[1:], "big")
        return head[:1], self.socket.recv(length, socket.MSG_WAITALL) if length else b""


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.socket.close()
    made.line.close()


def until(node: Node, condition: object) -> None:
    """Frames cross loopback in a moment, not at once."""
    assert callable(condition)
    for _ in range(1000):
        node.line.take_frames()
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("nothing came")


def test_bytes_come_in_order_however_they_are_cut(node: Node) -> None:
    frames = b"".join(b"U" + struct.pack(">H", 3) + bytes([one] * 3) for one in range(50))
    got = b""
    for start in range(0, len(frames), 7):
        node.socket.sendall(frames[start : start + 7])
        got += node.line.take_transmitted()
    until(node, lambda: node.line.traffic.up == 150)
    got += node.line.take_transmitted()
    assert got == b"".join(bytes([one] * 3) for one in range(50))


def test_pins_are_told_both_ways_and_a_fall_of_dtr_is_counted(node: Node) -> None:
    assert not node.line.data_terminal_ready
    for value in (0, 1, 0, 1):
        node.says(b"D", bytes([value]))
    until(node, lambda: node.line.hang_ups == 1)
    until(node, lambda: node.line.data_terminal_ready)
    node.line.set_data_carrier_detect(True)
    node.line.set_data_carrier_detect(False)
    assert [node.hears(), node.hears()] == [(b"C", b"\1"), (b"C", b"\0")]


def test_bytes_are_under_way_until_the_board_has_them(node: Node) -> None:
    data = bytes(100_000)
    got = bytearray()
    reader = threading.Thread(
        target=lambda: [got.extend(node.hears()[1]) for _ in range(2)], daemon=True
    )
    reader.start()
    assert node.line.receive(data) == 100_000
    reader.join(10.0)
    assert bytes(got) == data
    assert node.line.bytes_under_way == 100_000
    node.counts(b"A", 0, 99_000)
    until(node, lambda: node.line.bytes_under_way == 1000)
    assert node.line.traffic == TrafficCount(0, 99_000)


def test_a_cut_takes_the_line_away_until_power_is_back(node: Node) -> None:
    node.says(b"D", b"\1")
    node.says(b"U", b"half a pac")
    node.counts(b"F", 0, 7)
    node.says(b"P", b"\0")
    until(node, lambda: node.line.power_is_cut)
    assert (node.line.flash_operations, node.line.take_transmitted()) == (7, b"")
    assert not node.line.data_terminal_ready
    assert node.line.receive(b"x") == 0
    node.line.power_is_back()
    assert not node.line.data_terminal_ready
    assert node.line.receive(b"x") == 1


def test_an_emulation_goes_on_until_it_says_that_it_has(node: Node) -> None:
    def answer() -> None:
        assert node.hears() == (b"G", struct.pack(">II", 2500, 1000))
        node.says(b"B", b"\0")
        node.counts(b"I", 1, 3_000_000_000)

    other = threading.Thread(target=answer)
    other.start()
    assert node.line.go_on(2500, 1000) is True
    other.join()
    assert node.line.microseconds == 3_000_000_000
    assert node.line.was_reset


def test_a_node_that_is_gone_is_told_once_and_nothing_hangs(node: Node) -> None:
    node.says(b"N", b"cow")
    until(node, lambda: node.line.node == "cow")
    node.socket.close()
    until(node, lambda: node.line.end is not None)
    assert "Renode has lost node cow" in str(node.line.end)
    assert node.line.go_on(1, 1) is False
    node.line.set_data_carrier_detect(True)
    assert node.line.take_transmitted() == b""
