"""CPU of a deployment's processes by what they are for, those that come and go included."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Process:
    """A line of /proc: CPU seconds of its own, and of its children that have ended."""

    pid: int
    parent: int
    is_over: bool
    began: float
    cpu: float
    of_children: float


@dataclass
class Short:
    """A process that came and went: a ClientApp, one for each message."""

    where: str
    began: float
    ended: float
    cpu: float


def _processes() -> dict[int, Process]:
    # Times since boot, on the clock that the kernel's are on.
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        user, system, theirs, their_system = (int(one) / _TICKS for one in fields[11:15])
        found[int(name)] = Process(
            int(name),
            int(fields[1]),
            fields[0] == "Z",
            int(fields[19]) / _TICKS,
            user + system,
            theirs + their_system,
        )
    return found


class Watch:
    """Looks at a deployment's processes four times a second, in a thread of its own."""

    def __init__(self, folder: Path, gateways: list[str]) -> None:
        """Of a deployment that runs."""
        self._folder = folder
        self._gateways = gateways
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[int, Short] = {}
        self._cpu: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        """Begin."""
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by what processes are for."""
        with self._lock:
            self._look()
            return dict(self._cpu)

    def messages(self) -> list[Short]:
        """ClientApps that there were."""
        with self._lock:
            return [Short(**vars(one)) for one in self._seen.values()]

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            with self._lock:
                self._look()

    def _pid(self, *path: str) -> int:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads(self._folder.joinpath(*path).read_text())["pid"])
        return -1

    def _look(self) -> None:
        now = time.time()
        since_boot = now - time.clock_gettime(time.CLOCK_BOOTTIME)
        processes = _processes()
        children = defaultdict(list)
        for one in processes.values():
            children[one.parent].append(one)
        cpu: dict[str, float] = defaultdict(float)

        def add(what: str, pid: int) -> None:
            if pid in processes:
                cpu[what] += processes[pid].cpu

        def add_short(what: str, pid: int) -> list[Process]:
            if pid in processes:
                cpu[what] += processes[pid].of_children
            for child in children[pid]:
                cpu[what] += child.cpu
            return children[pid]

        add("service", self._pid("run", "service.json"))
        add("superlink", self._pid("coordinator", "flower", "superlink.pid"))
        superexec = self._pid("coordinator", "flower", "superexec.pid")
        add("superlink's superexec", superexec)
        add_short("serverapp", superexec)
        for path in (self._folder / "run").glob("broker-*.json"):
            add("brokers", self._pid("run", path.name))
        for gateway in self._gateways:
            add("gateway", self._pid("run", f"gateway-{gateway}.json"))
            node = self._pid("gateways", f"{gateway}-flower", "supernode.pid")
            add("supernode", node)
            for executor in children[node]:
                add("supernode's superexec", executor.pid)
                for app in add_short("clientapps", executor.pid):
                    known = self._seen.setdefault(
                        app.pid, Short(gateway, since_boot + app.began, now, app.cpu)
                    )
                    known.cpu = app.cpu
                    if not app.is_over:
                        known.ended = now
        self._cpu = dict(cpu)
