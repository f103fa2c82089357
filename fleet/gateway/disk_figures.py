"""Room on disks for Prometheus, told alike by service and gateway."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric


def disk_figures(folders: Mapping[str, Path]) -> list[Metric]:
    """Free and whole bytes of the file systems with these folders, by what a folder is for.

    One that can't be looked at is left out.
    """
    free = GaugeMetricFamily(
        "tinyfleet_disk_free_bytes", "Free for this process.", labels=["folder"]
    )
    size = GaugeMetricFamily("tinyfleet_disk_size_bytes", "Of the file system.", labels=["folder"])
    for name, folder in folders.items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        free.add_metric([name], usage.free)
        size.add_metric([name], usage.total)
    return [free, size]
