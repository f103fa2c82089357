"""A registry of very many devices: previews of filters, pages, an export.

    python -m benchmarks.registry [--devices 100000] [--url URL] [--json]

Without a URL the database is an SQLite file of its own. Times are medians in milliseconds on the
server's side, as the API would have them; memory is what the process has grown by over an export.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fleet.cli._output import console, table
from fleet.registry import Filter, NewDevice, Observed
from fleet.store import Registry, SqlStore, sqlite_url

WANTED_MILLISECONDS = 300
REPEATS = 9
ROOMS = ("north", "south", "east", "west")
BOARDS = ("stm32f746", "stm32f407")
FILTERS = (
    "",
    'board == "stm32f746" && battery_percent >= 30',
    'labels.room == "north" && online && seen_age_seconds < 3600',
    'device.startsWith("mcu-0042")',
    'site in ["site-1", "site-7"] && !(labels.room in ["south", "west"])',
    'device.contains("777") || labels.room == "nowhere"',
)


def devices(count: int) -> Iterator[NewDevice]:
    for number in range(count):
        yield NewDevice(
            device=f"mcu-{number:07}",
            site=f"site-{number % 50}",
            labels={"room": ROOMS[number % len(ROOMS)], "batch": str(number // 1000)},
        )


def heard(count: int, now: float) -> dict[str, Observed]:
    dice = np.random.default_rng(1)
    battery, age = dice.integers(0, 101, count), dice.integers(0, 10_000, count)
    return {
        f"mcu-{number:07}": Observed(
            gateway=f"gw-{number % 50}",
            board=BOARDS[number % 2],
            bundle=f"{number % 3:064}",
            current=f"{number % 5:064}",
            free_sram_bytes=100_000,
            battery_percent=int(battery[number]),
            link_bits_per_second=9600,
            train_samples=40,
            held_out_samples=20,
            online=bool(age[number] < 5000),
            last_seen=now - float(age[number]),
        )
        for number in range(count)
    }


def median_milliseconds(action: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--url")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = SqlStore(options.url or sqlite_url(Path(folder) / "store.sqlite"))
        try:
            figures = measure(Registry(store), options.devices)
        finally:
            store.close()
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    rows = [[name, f"{value:,.1f}"] for name, value in figures.items()]
    console().print(table(f"{options.devices:,} devices", ["what", "measured"], rows))
    slowest = max(value for name, value in figures.items() if name.endswith(" ms"))
    console().print(f"Slowest median: {slowest:,.0f} ms (wanted: at most {WANTED_MILLISECONDS}).")
    return 0


def measure(registry: Registry, count: int) -> dict[str, float]:
    """Figures by what they are of."""
    start = time.perf_counter()
    registry.add(devices(count))
    figures = {"add, devices per second": count / (time.perf_counter() - start)}
    start = time.perf_counter()
    registry.observe(heard(count, time.time()))
    figures["observe, devices per second"] = count / (time.perf_counter() - start)
    for text in FILTERS:
        wanted = Filter.parse(text)
        name = text or "every device"
        figures[f"preview: {name} ms"] = median_milliseconds(lambda of=wanted: registry.preview(of))
        figures[f"first page: {name} ms"] = median_milliseconds(lambda of=wanted: registry.page(of))
    last = f"mcu-{count - 50:07}"
    everyone = Filter.parse("")
    figures["last page: every device ms"] = median_milliseconds(
        lambda: registry.page(everyone, last)
    )
    tracemalloc.start()
    start = time.perf_counter()
    exported = sum(1 for _ in registry.export(everyone))
    figures["export, devices per second"] = exported / (time.perf_counter() - start)
    figures["export, most memory in MiB"] = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return figures


if __name__ == "__main__":
    sys.exit(main())
