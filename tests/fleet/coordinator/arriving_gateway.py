"""A `PlainGateway` whose devices deliver one after the other; deltas leave it in parts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fleet.campaign.start_requests import SAMPLES_MAY_GROW
from tests.fleet.coordinator.plain_gateway import PlainGateway, device_delta, train_samples

Key = tuple[str, int]


class ArrivingGateway(PlainGateway):
    """Rounds with the fold `arrivals`; others as a `PlainGateway` has them."""

    def __init__(
        self,
        name: str,
        socket_path: Path,
        devices: Iterable[dict[str, Any]],
        seconds: dict[str, float],
    ) -> None:
        """`seconds`: what each device takes for a task."""
        super().__init__(name, socket_path, devices, round_seconds=0.0)
        self.seconds = seconds
        # By round: the names of the devices in each part that was closed.
        self.closed: dict[Key, list[list[str]]] = {}
        self.twice_at_work: list[str] = []

    def _is_open(self, key: Key) -> bool:
        return key in self.rounds and self.rounds[key]["request"]["fold"]["name"] == "arrivals"

    def _tasks(self, key: Key) -> dict[str, str]:
        tasks = self.rounds[key]["request"]["tasks"]
        return {device: of["plan"] for of in tasks for device in of["devices"]}

    def _delivered(self, key: Key) -> list[str]:
        """In the order in which they came."""
        known = self.rounds[key]
        end = known.get("ended", self.now())
        due = {
            device: known["begun"] + self.seconds[device]
            for device in self._tasks(key)
            if device not in self.silent
        }
        return sorted((one for one in due if due[one] <= end), key=lambda one: (due[one], one))

    def _state(self, key: Key) -> str:
        if not self._is_open(key):
            return super()._state(key)
        known = self.rounds[key]
        if not known["state"]:
            deadline = known["begun"] + known["request"]["deadline_seconds"]
            if self.now() >= deadline or len(self._delivered(key)) == len(self._tasks(key)):
                known["state"], known["ended"] = "closed", min(deadline, self.now())
        return str(known["state"] or "running")

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        if (request["campaign"], request["round"]) not in self.rounds:
            wanted = {device for of in request["tasks"] for device in of["devices"]}
            for key in self.rounds:
                if self._is_open(key) and self._state(key) == "running":
                    at_work = self._tasks(key).keys() - set(self._delivered(key))
                    self.twice_at_work += sorted(at_work & wanted)
        return super()._start(request)

    def _watch(self, request: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + request["wait_seconds"]
        while True:
            ended = sum(self._state(tuple(key)) != "running" for key in request["rounds"])
            arrived = {
                campaign: sum(
                    len(self._delivered(key)) - sum(map(len, self.closed.get(key, [])))
                    for key in self.rounds
                    if key[0] == campaign
                )
                for campaign in request.get("arrivals", {})
            }
            is_due = ended or any(arrived[c] >= n for c, n in request.get("arrivals", {}).items())
            if is_due or time.monotonic() >= until:
                return {"ended": ended, "arrived": arrived}
            time.sleep(0.02)

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request["campaign"], request["round"])
        answer = super()._cancel(request)
        if answer["state"] == "cancelled":
            self.rounds[key].setdefault("ended", self.now())
        return answer

    def _collect(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request["campaign"], request["round"])
        if not self._is_open(key):
            return super()._collect(request)
        delivered, state = self._delivered(key), self._state(key)
        first = request.get("cursor", 0)
        answer: dict[str, Any] = {
            "state": state,
            "accepted": len(delivered),
            "reports": [self._report(key, device) for device in delivered[first:]],
            "cursor": len(delivered),
            "more": False,
        }
        part = request.get("part")
        if part is not None and state != "cancelled":
            closed = self.closed.setdefault(key, [])
            if part == len(closed):
                closed.append(delivered[sum(map(len, closed)) :])
            if part != len(closed) - 1:
                raise ValueError(f"part {part} of {len(closed)}")
            answer |= {
                "part": part,
                "through": sum(map(len, closed)),
                "sums": self._sums(key, closed[part]),
            }
        return answer

    def _sums(self, key: Key, devices: list[str]) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for plan in sorted({self._tasks(key)[device] for device in devices}):
            values = self.rounds[key]["request"]["plans"][plan]["values"]
            of_plan = [one for one in devices if self._tasks(key)[one] == plan]
            total = np.zeros(values, np.int64)
            for device in of_plan:
                total += train_samples(device) * device_delta(device, key[1], values)
            weight = sum(map(train_samples, of_plan))
            assert weight <= SAMPLES_MAY_GROW * 20 * len(of_plan)
            sums[plan] = [
                {
                    "values": total.astype("<i8").tobytes(),
                    "weight": weight,
                    "devices": len(of_plan),
                }
            ]
        return sums

    def _report(self, key: Key, device: str) -> dict[str, Any]:
        return {
            "device": device,
            "plan": self._tasks(key)[device],
            "train_samples": train_samples(device),
            "held_out": 10,
            "correct_before": 3,
            "correct_after": 4,
            "coded_bytes": 100,
            "payload_bytes": 120,
            "seconds": self.seconds[device],
        }

    def counted(self) -> Counter[tuple[Key, str]]:
        """How often each delta is in a part that was closed."""
        return Counter(
            (key, device)
            for key, parts in self.closed.items()
            for devices in parts
            for device in devices
        )
