"""What the gateway answers on its socket (docs/specification/gateway.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from fleet.gateway.config import GatewaySettings
from fleet.gateway.round_logic import DUPLICATE, LATE, RoundLogic
from fleet.gateway.rounds import RoundKey, RoundState
from fleet.gateway.store import RoundStore
from fleet.protocol import Delta, DeviceState, reason_name, state_name
from fleet.protocol.fields import CHUNK_BYTES


def hello_reply(settings: GatewaySettings, logic: RoundLogic, store: RoundStore) -> dict[str, Any]:
    """Who we are, which devices there are, which rounds."""
    seen = store.last_seen()
    devices = []
    for name, announce in sorted(logic.devices.items()):
        status = logic.statuses.get(name)
        state = DeviceState.OFFLINE if status is None else status.state
        devices.append(
            {
                "device": name,
                "board": announce.board,
                "bundle": announce.bundle.hex(),
                "weights": announce.weights.hex(),
                "free_sram_bytes": announce.free_sram_bytes,
                "battery_percent": (status or announce).battery_percent,
                "link_bits_per_second": announce.link_bits_per_second,
                "train_samples": announce.train_samples,
                "held_out_samples": announce.held_out_samples,
                "online": state != DeviceState.OFFLINE,
                "state": state_name(state),
                "last_seen": seen.get(name, 0.0),
            }
        )
    return {
        "gateway": settings.gateway,
        "fleet": settings.fleet,
        "devices": devices,
        "rounds": [
            {
                "campaign": key.campaign.hex(),
                "round": key.round,
                "state": str(found.state),
                **_not_counted_in(store.counters(key)),
            }
            for key, found in logic.rounds.items()
        ],
        "refused": store.counters(None),
        "explanations": store.explanations(None),
    }


def collect_reply(key: RoundKey, logic: RoundLogic, store: RoundStore) -> dict[str, Any]:
    """Where a round stands; with its sums once it is closed."""
    found = logic.rounds.get(key)
    if found is None:
        return {
            "state": str(RoundState.UNKNOWN),
            "accepted": 0,
            "late": 0,
            "duplicate": 0,
            "refused": {},
            "declined": {},
            "sums": {},
            "reports": [],
            "explanations": [],
        }
    return {
        "state": str(found.state),
        "accepted": len(found.accepted),
        **_not_counted_in(store.counters(key)),
        "declined": dict(Counter(map(reason_name, found.declined.values()))),
        "sums": store.sums(key) if found.state is RoundState.CLOSED else {},
        "reports": [_report(*row) for row in store.reports(key)],
        "explanations": store.explanations(key),
    }


def _not_counted_in(counters: dict[str, int]) -> dict[str, Any]:
    refused = {kind: n for kind, n in counters.items() if kind not in (LATE, DUPLICATE)}
    return {
        "late": counters.get(LATE, 0),
        "duplicate": counters.get(DUPLICATE, 0),
        "refused": refused,
    }


def _report(device: str, plan: bytes, header: Delta, seconds: float) -> dict[str, Any]:
    return {
        "device": device,
        "plan": plan.hex(),
        "status": "accepted",
        "train_samples": header.train_samples,
        "train_steps": header.train_steps,
        "held_out": header.held_out_samples,
        "correct_before": header.correct_before,
        "correct_after": header.correct_after,
        "loss_before": header.loss_before_thousandths / 1000,
        "loss_after": header.loss_after_thousandths / 1000,
        "coded_bytes": header.coded_bytes,
        "payload_bytes": payload_bytes(header),
        "seconds": seconds,
    }


def payload_bytes(header: Delta) -> int:
    """Bytes of all delta messages (the MQTT payloads) that carried one delta."""
    total = 0
    for chunk in range(header.chunks):
        size = min(CHUNK_BYTES, header.coded_bytes - chunk * CHUNK_BYTES)
        total += len(replace(header, chunk=chunk, coded=bytes(size)).encode())
    return total
