"""A gateway's socket without MQTT: devices whose deltas are a function of (device, round).

It keeps to docs/specification/gateway.md, so that what drives it can't tell. The arithmetic
of devices is made up; how often each delta was handed out is recorded. What devices are told to
release is what they announce as current from then on.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fleet.gateway import frames


def device_delta(device: str, number: int, values: int) -> np.ndarray:
    """What a device sends in a round; int64, small."""
    seed = int.from_bytes(hashlib.sha256(f"{device}/{number}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(-20, 21, values).astype(np.int64)


def train_samples(device: str) -> int:
    """How many samples a device has."""
    return 10 + len(device) + sum(map(ord, device)) % 7


def better_every_round(device: str, number: int, weights: str) -> tuple[int, int]:
    """Held-out samples of a device, and how many it gets right in a round with these weights."""
    return 10, min(10, 3 + number)


class PlainGateway:
    """Serves a unix socket from a thread. A round closes `round_seconds` after its start."""

    def __init__(
        self,
        name: str,
        socket_path: Path,
        devices: Iterable[dict[str, Any]],
        round_seconds: float = 1.0,
        page: int = 500,
    ) -> None:
        self.name = name
        self.socket_path = socket_path
        self.devices = list(devices)
        self.round_seconds = round_seconds
        self.page = page
        self.now: Callable[[], float] = time.monotonic
        self.score: Callable[[str, int, str], tuple[int, int]] = better_every_round
        # Devices that never report, and those that decline, with their reasons.
        self.silent: set[str] = set()
        self.declining: dict[str, str] = {}
        # Whether a training round ends with as many deltas as were wanted.
        self.stops_at_target = False
        self.requests: list[str] = []
        self.rounds: dict[tuple[str, int], dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(socket_path))
        self._server.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        with socket.socket(socket.AF_UNIX) as wake:
            wake.connect(str(self.socket_path))
        self._thread.join()
        self._server.close()
        self.socket_path.unlink()

    def _serve(self) -> None:
        while not self._ended.is_set():
            connection, _ = self._server.accept()
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            request = frames.receive(connection)
            if request is None:
                return
            operation = request.pop("op")
            self.requests.append(operation)
            try:
                reply = {"ok": True, **getattr(self, f"_{operation}")(request)}
            except ValueError as error:
                reply = {"ok": False, "error": str(error)}
            frames.send(connection, reply)

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": 5,
            "gateway": self.name,
            "fleet": "test",
            "devices": self.devices,
            "rounds": [],
        }

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request["campaign"], request["round"])
        with self._lock:
            known = self.rounds.get(key)
            if known is None:
                for blob in request["blobs"]:
                    if hashlib.sha256(blob["data"]).hexdigest() != blob["sha256"]:
                        raise ValueError("the blob's digest is wrong")
                self.rounds[key] = {"request": request, "begun": self.now(), "state": ""}
            elif known["request"] != request:
                raise ValueError(f"round {key} was started with another content")
            return {"state": self._state(key)}

    def _state(self, key: tuple[str, int]) -> str:
        known = self.rounds.get(key)
        if known is None:
            return "unknown"
        if known["state"]:
            return str(known["state"])
        if self.now() - known["begun"] >= self.round_seconds:
            known["state"] = "closed"
        return str(known["state"] or "running")

    def _watch(self, request: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + min(5.0, request["wait_seconds"])
        while True:
            ended = sum(self._state(tuple(key)) != "running" for key in request["rounds"])
            if ended or time.monotonic() >= until:
                return {"ended": ended}
            time.sleep(0.02)

    def _collect(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request["campaign"], request["round"])
        state = self._state(key)
        answer: dict[str, Any] = {
            "state": state,
            "accepted": 0,
            "late": 0,
            "duplicate": 0,
            "refused": {},
            "declined": {},
            "reports": [],
        }
        if state == "closed":
            answer.update(self._close(key))
            first = request.get("cursor", 0)
            told = answer["reports"][first : first + self.page]
            answer.update(cursor=first + len(told), more=first + len(told) < len(answer["reports"]))
            answer["reports"] = told
            if answer["more"]:
                del answer["sums"]
        return answer

    def _close(self, key: tuple[str, int]) -> dict[str, Any]:
        request = self.rounds[key]["request"]
        sums: dict[str, dict[str, Any]] = {}
        reports: list[dict[str, Any]] = []
        tasks = {
            device: (of["plan"], of["weights"])
            for of in request["tasks"]
            for device in of["devices"]
        }
        declined = {device: why for device, why in self.declining.items() if device in tasks}
        for device, (plan, weights) in sorted(tasks.items()):
            if device in self.silent or device in declined:
                continue
            if self.stops_at_target and len(reports) == request["target"]:
                break
            self._works(device, request["action"], weights)
            held_out, correct = self.score(device, request["round"], weights)
            values = request["plans"][plan]["values"]
            count = train_samples(device) if request["action"] == "train" else 0
            one = sums.setdefault(
                plan, {"values": np.zeros(values, np.int64), "weight": 0, "devices": 0}
            )
            if count:
                one["values"] += count * device_delta(device, request["round"], values)
                one["weight"] += count
                one["devices"] += 1
            reports.append(
                {
                    "device": device,
                    "plan": plan,
                    "status": "accepted",
                    "train_samples": count,
                    "held_out": held_out,
                    "correct_before": correct,
                    "correct_after": min(held_out, correct + 1),
                    "coded_bytes": 100,
                    "payload_bytes": 120,
                    "seconds": 1.0,
                }
            )
        for one in sums.values():
            one["values"] = one["values"].astype("<i8").tobytes()
        folds = {plan: [one] for plan, one in sums.items()}
        return {
            "accepted": len(reports),
            "sums": folds,
            "reports": reports,
            "declined": dict(Counter(declined.values())),
            "declined_by": declined,
        }

    def _works(self, device: str, action: str, weights: str) -> None:
        """What a device announces once it has done this with these weights."""
        for entry in self.devices:
            if entry["device"] == device:
                if action == "release":
                    entry.update(current=weights, candidate="")
                else:
                    entry["candidate"] = "" if weights == entry["current"] else weights

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        key = (request["campaign"], request["round"])
        with self._lock:
            if self._state(key) == "running":
                self.rounds[key]["state"] = "cancelled"
            return {"state": self._state(key)}
