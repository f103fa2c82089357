"""`tinyfleet machines`: the ways to run devices without hardware, and what each can."""

from __future__ import annotations

from codegen.firmware.boards import list_boards
from fleet.cli._output import console, print_json, table
from simulator.machines.protocol import Capability
from simulator.machines.registry import MACHINES, boards_of


def list_machines(*, as_json: bool) -> None:
    """Print every machine: what it is, what it can, its boards, and what it lacks here."""
    kinds = sorted(MACHINES.items())
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "title": kind.title,
                    "capabilities": sorted(one.value for one in kind.capabilities),
                    "boards": boards_of(kind),
                    "absent": kind.why_absent(),
                }
                for name, kind in kinds
            ]
        )
        return
    screen = console()
    names = [name for name, _ in kinds]
    for title, rows in (
        ("What machines can", {one.value: _that_can(one) for one in Capability}),
        ("Boards that they can be", {board: _that_can_be(board) for board in list_boards()}),
    ):
        cells = [[row, *("yes" * (name in where) for name in names)] for row, where in rows.items()]
        screen.print(table(title, ["", *names], cells))
    for name, kind in kinds:
        screen.print(f"{name}: {kind.title}", markup=False, soft_wrap=True)
        if absent := kind.why_absent():
            screen.print(f"  not here: {absent}", markup=False, soft_wrap=True)


def _that_can(capability: Capability) -> set[str]:
    return {name for name, kind in MACHINES.items() if capability in kind.capabilities}


def _that_can_be(board: str) -> set[str]:
    return {name for name, kind in MACHINES.items() if board in boards_of(kind)}
