"""What machines of the simulator cost: ``python -m benchmarks.simulator [PART ...] [--json]``.

A part that lacks something here says so and is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.simulator import fleet, host, qemu, renode, unicorn
from simulator.errors import SimulatorError


class Part(NamedTuple):
    """How a part is measured, from the command's options, and how its figures are printed."""

    measure: Callable[[argparse.Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]


PARTS = {
    "fleet": Part(fleet.measure_part, fleet.print_part),
    "host": Part(host.measure_part, host.print_part),
    "qemu": Part(qemu.measure_part, qemu.print_part),
    "renode": Part(renode.measure_part, renode.print_part),
    "unicorn": Part(unicorn.measure_part, unicorn.print_part),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nodes", default="1,4,16", help="renode: how many at once")
    parser.add_argument("--devices", type=int, default=10_000, help="fleet: how many")
    parser.add_argument("--unicorn-devices", type=int, default=1_000, help="unicorn: how many")
    parser.add_argument("--rounds", type=int, default=1, help="fleet: how many")
    parser.add_argument(
        "--workers",
        default="",
        help="fleet: as of tinyfleet experiment run, or several with commas between them; "
        "as many as there are cores where left out",
    )
    parser.add_argument(
        "--flower",
        default="",
        metavar="PYTHON",
        help="fleet: one with Flower's engine",
    )
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    found = {}
    for name in given.parts or PARTS:
        try:
            found[name] = PARTS[name].measure(given)
        except SimulatorError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        PARTS[name].show(figures)


if __name__ == "__main__":
    main()
