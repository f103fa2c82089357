"""Attacks on what devices send, without protection, with masks, and with masks and noise.

    python -m benchmarks.privacy [STUDY ...] [--seeds 20] [--json FILE]

`inversion`: pictures from deltas; `crafted`: pictures from sums, by weights made for it;
`membership`: who took part; `canaries`, `campaigns`: how much a run shows at 99.9 % confidence,
beside the ledger; `faults`: the same with devices that do something wrong; `poisoning`: hostile
devices, by aggregation rule. The same seeds give the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.progress import Progress

from benchmarks.privacy.studies import STUDIES, Table
from fleet.cli._output import console, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--seeds", type=int, default=20, help="campaigns of each kind")
    parser.add_argument("--json", type=Path, help="all figures")
    options = parser.parse_args()
    if unknown := set(options.studies) - set(STUDIES):
        parser.error(f"no study {sorted(unknown)[0]!r}; there are {', '.join(STUDIES)}")
    found: dict[str, list[Table]] = {}
    for name in options.studies or STUDIES:
        study, steps = STUDIES[name]
        with Progress() as progress:
            bar = progress.add_task(name, total=steps(options.seeds))
            found[name] = list(study(options.seeds, lambda bar=bar, p=progress: p.advance(bar)))
        for one in found[name]:
            console().print(table(one.title, one.columns, one.rows))
    if options.json is not None:
        records = {
            name: {one.title: one.records for one in tables} for name, tables in found.items()
        }
        options.json.write_text(json.dumps(records, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
