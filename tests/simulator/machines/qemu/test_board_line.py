"""The modem's end of the line to a board of the port mps; the test is the board."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.machines.qemu.board_line import BoardLine
from tests.conftest import examples


@pytest.fixture
def line() -> Iterator[BoardLine]:
    made = BoardLine()
    yield made
    made.close()


def heard_by_board(line: BoardLine) -> bytes:
    return line.boards_end.recv(1 << 16) if line.bytes_under_way else b""


def test_lines_are_told_between_the_bytes_where_they_changed(line: BoardLine) -> None:
    line.tell_battery(0x10)
    line.set_data_carrier_detect(True)
    assert line.receive(b"a\x10C") == 3
    line.set_data_carrier_detect(False)
    assert heard_by_board(line) == b"\x10B\x10" + b"\x10C" + b"a\x10\x10C" + b"\x10c"


def test_a_board_that_hangs_up_and_dials_again_between_two_looks_has_hung_up(
    line: BoardLine,
) -> None:
    line.boards_end.sendall(b"\x10dX")
    assert (line.data_terminal_ready, line.hang_ups) == (False, 0)
    line.boards_end.sendall(b"\x10DY\x10d\x10D")
    assert (line.data_terminal_ready, line.hang_ups) == (True, 1)
    assert line.take_transmitted() == b"XY"


@examples(60)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_every_byte_comes_through_however_it_is_cut(pieces: list[bytes]) -> None:
    line = BoardLine()
    whole = b"".join(pieces)
    escaped = whole.replace(b"\x10", b"\x10\x10")
    found = b""
    for start in range(0, len(escaped), 3):
        line.boards_end.sendall(escaped[start : start + 3])
        found += line.take_transmitted()
    assert found == whole
    assert line.traffic.up == len(whole)
    assert not line.data_terminal_ready
    line.close()


def test_bytes_count_as_arrived_once_the_board_has_taken_them(line: BoardLine) -> None:
    line.receive(b"x" * 100)
    assert (line.bytes_under_way, line.traffic.down) == (100, 0)
    line.boards_end.recv(40)
    assert (line.bytes_under_way, line.traffic.down) == (60, 40)


def test_what_is_on_the_line_when_a_board_starts_is_lost_but_for_the_carrier(
    line: BoardLine,
) -> None:
    line.boards_end.sendall(b"\x10D\x10")
    line.set_data_carrier_detect(True)
    line.receive(b"for the firmware before")
    assert line.data_terminal_ready
    line.board_starts()
    assert (line.data_terminal_ready, line.hang_ups) == (False, 1)
    assert heard_by_board(line) == b"\x10C"
    line.boards_end.sendall(b"D")
    assert line.take_transmitted() == b"D"


def test_a_board_that_takes_nothing_is_given_no_more_than_the_line_holds(line: BoardLine) -> None:
    given = 0
    while taken := line.receive(b"\x10" * 100_000):
        given += taken
        assert given < 10_000_000
    assert given > 4096
