"""`tinyfleet machines`: the ways to run devices without hardware, and what each can."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.firmware.boards import list_boards
from fleet.cli._output import console, print_json, table
from simulator.machines.protocol import Capability
from simulator.machines.registry import MachineKind, boards_of, machine_kind, machine_names


def list_machines(*, as_json: bool) -> None:
    """Print every machine: what it is, what it can, its boards, and what it lacks here."""
    kinds = {name: machine_kind(name) for name in machine_names()}
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
                for name, kind in kinds.items()
            ]
        )
        return
    screen = console()
    for title, rows in (
        ("What machines can", {one.value: _that_can(kinds, one) for one in Capability}),
        ("Boards that they can be", {board: _that_can_be(kinds, board) for board in list_boards()}),
    ):
        cells = [[row, *("yes" * (name in where) for name in kinds)] for row, where in rows.items()]
        screen.print(table(title, ["", *kinds], cells))
    for name, kind in kinds.items():
        screen.print(f"{name}: {kind.title}", markup=False, soft_wrap=True)
        if absent := kind.why_absent():
            screen.print(f"  not here: {absent}", markup=False, soft_wrap=True)


def _that_can(kinds: Mapping[str, MachineKind], capability: Capability) -> set[str]:
    return {name for name, kind in kinds.items() if capability in kind.capabilities}


def _that_can_be(kinds: Mapping[str, MachineKind], board: str) -> set[str]:
    return {name for name, kind in kinds.items() if board in boards_of(kind)}
