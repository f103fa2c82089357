"""Bytes on a device's serial line for one version of the weights, computed from the formats.

Nothing is lost and nothing sent twice: what is measured on an emulated line has to come close.

    python -m benchmarks.downlink BUNDLE ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fleet.cli._output import console, table
from fleet.protocol import topics
from fleet.protocol.chunks import chunk_count, chunks_of, group_of
from fleet.protocol.fields import CHUNK_BYTES, LEASE, ROUND, SEED
from fleet.protocol.manifest import Manifest
from fleet.protocol.messages import Receipt, Task
from fleet.protocol.numbers import Action, Coding, ReceiptResult, Weighting

FLEET, DEVICE, GATEWAY = "demo", "mcu-01", "gw-1"
"""Names of usual length: they stand in every chunk's topic."""

EXPIRY_BYTES = 1 + 4
"""The property that tells how long a message is kept."""
ACKNOWLEDGED = 6
"""Publications of a device in a round: statuses and a delta."""


def bytes_down(weights_bytes: int) -> int:
    """Bytes to a device that fetches a version, trains on it and gets its receipt.

    Chunks with their topics, the broker's answers to subscriptions of groups and to publications of
    the device, the task, its end, and the receipt; numbers are as long as they can be.
    """
    weights = bytes(weights_bytes)
    digest = bytes(32)
    groups = group_of(chunk_count(weights_bytes, CHUNK_BYTES.most) - 1) + 1
    chunks = sum(
        _publish(topics.blob(FLEET, digest, number), len(payload) + EXPIRY_BYTES, qos=1)
        for number, payload in chunks_of(weights, CHUNK_BYTES.most)
    )
    # SUBACK and UNSUBACK: packet identifier, length of no properties, one reason.
    answers = groups * 2 * _packet(2 + 1 + 1) + ACKNOWLEDGED * _packet(2 + 1)
    task = Task(
        lease=LEASE.most,
        campaign=bytes(8),
        round=ROUND.most,
        action=Action.TRAIN,
        plan=digest,
        weights=digest,
        weights_bytes=weights_bytes,
        chunk_bytes=CHUNK_BYTES.most,
        epochs=1,
        learning_rate_q20=2**20,
        seed=SEED.most,
        coding=Coding.RICE,
        weighting=Weighting.SAMPLES,
        uplink_chunk_bytes=16_384,
        deadline_seconds=86_400,
        max_score_drop_permille=1_000,
        check_in_seconds=3_600,
    )
    response = 1 + 2 + len(topics.delta(FLEET, GATEWAY, DEVICE))
    topic = topics.task(FLEET, DEVICE)
    given = _publish(topic, len(task.encode()) + EXPIRY_BYTES + response, qos=1)
    taken_back = _publish(topic, 0, qos=1)
    receipt = Receipt(
        lease=LEASE.most,
        campaign=bytes(8),
        round=ROUND.most,
        result=ReceiptResult.COUNTED,
        coded_crc32=2**32 - 1,
    )
    counted = _publish(topics.receipt(FLEET, DEVICE), len(receipt.encode()), qos=0)
    return chunks + answers + given + taken_back + counted


def _publish(topic: str, properties_and_payload: int, qos: int) -> int:
    """A PUBLISH: topic, with QoS 1 a packet identifier, length of the properties, the rest."""
    return _packet(2 + len(topic) + 2 * qos + 1 + properties_and_payload)


def _packet(rest: int) -> int:
    """First byte, length (seven bits a byte), and what that counts."""
    length = 1
    while rest >> 7 * length:
        length += 1
    return 1 + length + rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    rows: list[list[object]] = []
    for folder in parser.parse_args().bundles:
        manifest = Manifest.read(folder)
        size = manifest.weights.bytes
        chunks = chunk_count(size, CHUNK_BYTES.most)
        rows.append([manifest.model.name, manifest.board.name, size, chunks, bytes_down(size)])
    titles = ["model", "board", "bytes of weights", "chunks", "bytes down the line"]
    console().print(table("One version of the weights", titles, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
