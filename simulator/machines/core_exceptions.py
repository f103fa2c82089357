"""How a core of Armv7-M enters its handler of faults, which Unicorn doesn't do."""

from __future__ import annotations

from collections.abc import Callable

from unicorn import arm_const, unicorn_const

from simulator.errors import MachineFault
from simulator.machines.unicorn_core import UnicornCore

INSTRUCTION_ACCESS, DATA_ACCESS = 1 << 0, 1 << 1
BUS_INSTRUCTION, BUS_DATA, BUS_STACKING = 1 << 8, 1 << 9, 1 << 12
UNDEFINED_INSTRUCTION = 1 << 16
"""Bits of the configurable fault status register (CFSR)."""

_STACKED = (
    arm_const.UC_ARM_REG_R0,
    arm_const.UC_ARM_REG_R1,
    arm_const.UC_ARM_REG_R2,
    arm_const.UC_ARM_REG_R3,
    arm_const.UC_ARM_REG_R12,
    arm_const.UC_ARM_REG_LR,
    arm_const.UC_ARM_REG_PC,
    arm_const.UC_ARM_REG_XPSR,
)
_OF_PERIPHERALS = (2, 5, 6, 7)
"""Eighths of the address space: peripherals, external devices, the core's own."""
_RETURN_TO_THREAD = 0xFFFFFFF9
_HARD_FAULT = 3

_FETCHES = unicorn_const.UC_MEM_FETCH_UNMAPPED, unicorn_const.UC_MEM_FETCH_PROT
_BY_ACCESS = {
    unicorn_const.UC_MEM_READ_UNMAPPED: BUS_DATA,
    unicorn_const.UC_MEM_WRITE_UNMAPPED: BUS_DATA,
    unicorn_const.UC_MEM_FETCH_UNMAPPED: BUS_INSTRUCTION,
    unicorn_const.UC_MEM_READ_PROT: DATA_ACCESS,
    unicorn_const.UC_MEM_WRITE_PROT: DATA_ACCESS,
    unicorn_const.UC_MEM_FETCH_PROT: INSTRUCTION_ACCESS,
}


def status_of_access(kind: int, address: int) -> int:
    """The bit of CFSR for an access that Unicorn refused.

    0 in the address space of peripherals, but for fetches, which are never allowed there: what isn't
    emulated may well be on the chip.
    """
    if address >> 29 in _OF_PERIPHERALS:
        return INSTRUCTION_ACCESS if kind in _FETCHES else 0
    return _BY_ACCESS.get(kind, 0)


def enter_hard_fault(core: UnicornCore, handler: int, store: Callable[[int, bytes], None]) -> bool:
    """Stack the frame and go to ``handler``, of whose registers only FPU ones aren't stacked.

    Returns: whether the frame could be stored (``store`` raises MachineFault outside of SRAM); the
    handler is entered all the same, with the stack pointer where the frame should be.
    """
    frame = [core.read_register(register) for register in _STACKED]
    stack = core.stack_pointer
    if stack % 8:
        stack -= 4
        frame[-1] |= 1 << 9
    stack -= 4 * len(frame)
    try:
        store(stack, b"".join(word.to_bytes(4, "little") for word in frame))
        is_stored = True
    except MachineFault:
        is_stored = False
    core.stack_pointer = stack
    core.write_register(arm_const.UC_ARM_REG_LR, _RETURN_TO_THREAD)
    core.write_register(arm_const.UC_ARM_REG_IPSR, _HARD_FAULT)
    core.pc = handler & ~1
    return is_stored
