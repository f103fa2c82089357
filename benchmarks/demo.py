"""Runs the demo and prints its figures beside what was asked of them.

    python -m benchmarks.demo [RESULT.json]

With a result.json it prints that run instead of making one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OUT = Path("out/benchmarks/demo")


def line(what: str, got: str, wanted: str, met: bool) -> None:
    print(f"{'ok  ' if met else 'MISS'} {what:52} {got:>14}  (wanted {wanted})")


def report(result: dict[str, Any]) -> None:
    accuracy = result["accuracy"]
    gain = 100 * (accuracy["median_after"] - accuracy["median_before"])
    line("median held-out accuracy, points gained", f"{gain:.1f}", ">= 10", gain >= 10)
    share = result["uplink"]["ratio"]
    what = f"uplink, plan {result['uplink']['plan']}, everything on the wire"
    line(what, f"1/{1 / share:.0f}", "<= 1/50", share <= 1 / 50)
    for plan in result["plans"]:
        name = f"{plan['name']} on {plan['board']}"
        used, limit = plan["sram_total_bytes"], plan["sram_limit_bytes"]
        line(f"SRAM of {name}", f"{used:,}", f"<= {limit:,}", used <= limit)
    memory = result["fleet_memory_bytes"]
    line("simulator memory", f"{memory / 1e6:.0f} MB", "<= 500 MB", memory <= 500e6)
    seconds = result["seconds"]
    line("second run of the demo", f"{seconds:.0f} s", "<= 120 s on 2 idle cores", seconds <= 120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", metavar="RESULT.json", type=Path, nargs="?")
    path = parser.parse_args().result
    if path is None:
        subprocess.run([sys.executable, "-m", "fleet.cli", "demo", "--out", str(OUT)], check=True)
        path = OUT / "result.json"
    report(json.loads(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
