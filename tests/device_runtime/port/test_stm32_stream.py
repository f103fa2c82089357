"""The serial line of the stm32 port on emulated boards, at line speed."""

from __future__ import annotations

import pytest

from simulator.machines.protocol import StopReason

from .port_machine import BOARDS, TICK, Command, PortMachine, names, noise

PLAIN, FLOW = names(BOARDS, flow=False), names(BOARDS, flow=True)
RING = 4096
BAUD = 115_200
NVIC_CLEAR_ENABLE = 0xE000E184
RECEIVE_STREAM = 1 << 58 - 32
WORK_ROUNDS_PER_MS = 28_000
"""About: a millisecond of the core's, at 168 MHz."""


def bytes_per_second(machine: PortMachine) -> float:
    """Of the line, whose bus has a quarter of the core's clock, as near as the divider comes."""
    bus = machine.board.clock_hz // 4
    return bus / round(bus / BAUD) / 10


@pytest.mark.parametrize("machine", PLAIN, indirect=True)
def test_a_burst_of_many_rings_without_a_pause_is_received_whole(machine: PortMachine) -> None:
    sent = noise(20_000)
    machine.receive(sent)
    machine.settle()
    assert machine.received == sent


@pytest.mark.parametrize("machine", PLAIN, indirect=True)
def test_without_the_interrupts_of_the_receiving_stream_it_overruns(machine: PortMachine) -> None:
    """As it did before: the line falls idle only behind the burst, and a tick comes too late."""
    machine.call("poke", NVIC_CLEAR_ENABLE, RECEIVE_STREAM)
    machine.run_for(TICK)
    sent = noise(20_000)
    machine.receive(sent)
    machine.settle()
    assert len(machine.received) < 20_000
    machine.run_for(TICK)
    machine.set_word("received_bytes", 0)
    machine.receive(sent[: RING - 1])  # a pause comes before the ring is full
    machine.settle()
    assert machine.received == sent[: RING - 1]


@pytest.mark.parametrize("machine", PLAIN, indirect=True)
def test_bytes_arrive_at_line_speed_while_the_core_works(machine: PortMachine) -> None:
    machine.give(Command.WORK, 100 * WORK_ROUNDS_PER_MS)
    before, arrived = machine.clock.now, machine.traffic.down
    machine.receive(noise(RING - 1))
    machine.world_milliseconds += TICK  # a tick wakes it up
    while machine.run(5) is StopReason.SLICE_OVER:
        seconds = (machine.clock.now - before) / 1e9
        expected = min(RING - 1, seconds * bytes_per_second(machine))
        machine.line.bring_up_to_date()
        assert machine.traffic.down - arrived == pytest.approx(expected, abs=3)
    machine.run_for(400)
    assert machine.received == noise(RING - 1)


@pytest.mark.parametrize("machine", PLAIN, indirect=True)
@pytest.mark.parametrize(("count", "is_whole"), [(RING - 1, True), (RING + 200, False)])
def test_a_long_step_loses_nothing_of_what_the_ring_holds(
    machine: PortMachine, count: int, is_whole: bool
) -> None:
    machine.give(Command.WORK, 400 * WORK_ROUNDS_PER_MS)
    machine.world_milliseconds += TICK
    machine.run(1)
    machine.receive(noise(count))
    machine.settle()
    assert (machine.received == noise(count)) == is_whole


@pytest.mark.parametrize("machine", FLOW, indirect=True)
def test_flow_control_stops_the_line_through_steps_of_any_length(machine: PortMachine) -> None:
    sent = noise(20_000)
    machine.give(Command.WORK, 500 * WORK_ROUNDS_PER_MS)
    machine.world_milliseconds += TICK
    machine.run(1)
    machine.receive(sent)
    machine.run(450)
    assert machine.bytes_under_way == 20_000 - RING, "the line has stopped"
    machine.settle()
    assert machine.received == sent


@pytest.mark.parametrize("machine", FLOW, indirect=True)
def test_with_flow_control_a_burst_that_is_read_in_time_does_not_stop(machine: PortMachine) -> None:
    before = machine.clock.now
    machine.receive(noise(20_000))
    machine.settle()
    assert machine.received == noise(20_000)
    assert (machine.clock.now - before) / 1e9 < 20_000 / bytes_per_second(machine) + 0.01


@pytest.mark.parametrize("machine", PLAIN, indirect=True)
def test_the_line_goes_on_through_the_longest_erase(machine: PortMachine) -> None:
    """What is under way never exceeds the ring (wire.md), however long the core stands still."""
    sectors = machine.board.flash.sectors
    longest = machine.flash_controller.erase_milliseconds
    sent = noise(RING - 1)
    machine.give(Command.ERASE, len(sectors) - 1)
    machine.receive(sent)
    before = machine.clock.now
    machine.run_for(TICK)
    assert machine.word("last_result") == 0
    assert machine.received == sent
    assert machine.clock.now - before >= longest(max(sectors)) * 1_000_000 // 2
    assert machine.last_fault is None
    assert machine.report == (0, 0, 0), "the watchdog didn't bite"


@pytest.mark.parametrize("machine", [*PLAIN, *FLOW], indirect=True)
def test_no_byte_is_left_lying_whenever_it_comes(machine: PortMachine) -> None:
    """Between the look at the ring and the sleep there is no moment at which one is missed."""
    sent = noise(20_000)
    given = 0
    for turn in range(300):
        part = sent[given : given + 1 + turn * 7 % 61]
        machine.receive(part)
        given += len(part)
        machine.run(0.001 * (1 + turn % 23))  # the slice ends anywhere
        machine.world_milliseconds += 0.05
    machine.settle()
    assert machine.received == sent[:given]


@pytest.mark.parametrize("machine", [*PLAIN, *FLOW], indirect=True)
def test_what_is_sent_takes_the_time_of_the_line(machine: PortMachine) -> None:
    before = machine.clock.now
    machine.give(Command.SEND, 230)
    machine.world_milliseconds += TICK
    while not machine.traffic.up:
        machine.run(1)
        machine.world_milliseconds += 0.1
    assert machine.word("last_result") == 230
    assert (machine.clock.now - before) / 1e6 > 230 / bytes_per_second(machine) * 1000
    assert len(machine.take_transmitted()) == 230


@pytest.mark.parametrize("machine", [*PLAIN, *FLOW], indirect=True)
def test_the_last_words_leave_before_the_modem_hangs_up(machine: PortMachine) -> None:
    machine.give(Command.SEND, 200)
    machine.world_milliseconds += TICK
    machine.run(0.2)
    machine.call("hang_up")
    assert not machine.data_terminal_ready
    assert len(machine.take_transmitted()) == 200
