"""Whole rounds: a real Mosquitto, a real gateway process, real wire format."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import paho.mqtt.client as paho
import pytest
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion

from fleet.errors import GatewayError
from fleet.protocol import DeviceState, Reason, ReceiptResult, Task, device_seed, topics
from tests.fleet.gateway.deltas import (
    BLOB,
    BLOB_CHUNKS,
    CAMPAIGN,
    FLEET,
    GATEWAY,
    PLAN,
    WEIGHTS,
    delta_chunks,
)
from tests.fleet.gateway.site import FakeDevice, Site, memory_kib
from tests.patience import PATIENCE_SECONDS, wait_until

MakeSite = Callable[[list[str]], Site]
VALUES = 1000


def trained(seed: int) -> tuple[NDArray[np.int32], int]:
    """What device number ``seed`` makes of a task; several chunks long."""
    random = np.random.default_rng(seed)
    values = (random.normal(size=VALUES) * 500 * (random.random(VALUES) < 0.7)).astype(np.int32)
    return values, 20 + seed


def trains(seed: int) -> Callable[[Task], tuple[NDArray[np.int32], int]]:
    return lambda task: trained(seed)


def expected_sum(seeds: list[int]) -> NDArray[np.int64]:
    total = np.zeros(VALUES, np.int64)
    for seed in seeds:
        values, samples = trained(seed)
        total += values.astype(np.int64) * samples
    return total


def assert_sum(reply: dict, seeds: list[int]) -> None:
    (total,) = reply["sums"][PLAN]
    assert np.array_equal(np.frombuffer(total["values"], "<i8"), expected_sum(seeds))
    assert total["weight"] == sum(trained(seed)[1] for seed in seeds)
    assert total["devices"] == len(seeds)


def test_a_whole_round_gives_the_exact_sum_of_what_the_devices_sent(make_site: MakeSite) -> None:
    names = [f"cow-{i}" for i in range(4)]
    site = make_site(names)
    for seed, name in enumerate(names):
        site.add(name, trains(seed))
    assert site.start(uplink_chunk_bytes=512) == {"state": "running", "devices": {}}
    reply = site.collect_closed()
    assert reply["state"] == "closed"
    assert reply["accepted"] == 4
    assert (reply["late"], reply["duplicate"], reply["refused"]) == (0, 0, {})
    assert_sum(reply, [0, 1, 2, 3])
    (report,) = [one for one in reply["reports"] if one["device"] == "cow-2"]
    task = site.devices["cow-2"].tasks.get().task
    chunks = delta_chunks(task, *trained(2))
    assert len(chunks) > 1
    assert report["device"] == "cow-2"
    assert report["coded_bytes"] == chunks[0].coded_bytes
    assert report["payload_bytes"] == sum(len(chunk.encode()) for chunk in chunks)
    assert (report["correct_before"], report["correct_after"], report["held_out"]) == (4, 7, 10)
    for seed, device in enumerate(site.devices.values()):
        assert device.cleared.wait(PATIENCE_SECONDS), (
            "the task topic is emptied when the round ends"
        )
        receipt = device.receipts.get(timeout=PATIENCE_SECONDS)
        assert receipt.result == ReceiptResult.COUNTED
        first = delta_chunks(device.tasks.queue[0].task if seed != 2 else task, *trained(seed))[0]
        assert receipt.coded_crc32 == first.coded_crc32
    # Asking again changes nothing.
    assert site.client.collect(CAMPAIGN, 1) == reply
    assert site.start(uplink_chunk_bytes=512) == {"state": "closed", "devices": {}}


def test_a_task_carries_everything_that_the_device_needs(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    device = site.add("cow")
    site.start(deadline_seconds=5000)
    received = device.tasks.get(timeout=PATIENCE_SECONDS)
    assert received.response_topic == topics.delta(FLEET, GATEWAY, "cow")
    assert received.expiry_seconds is not None
    assert 4000 <= received.expiry_seconds <= 5000  # less what it has waited
    assert 4000 <= received.task.deadline_seconds <= 5000
    assert received.task == Task(
        lease=1,
        campaign=bytes.fromhex(CAMPAIGN),
        round=1,
        action=1,
        plan=bytes.fromhex(PLAN),
        weights=bytes.fromhex(WEIGHTS),
        weights_bytes=len(BLOB),
        chunk_bytes=512,
        epochs=2,
        learning_rate_q20=round(0.01 * 2**20),
        seed=device_seed(7, "cow"),
        coding=0,
        weighting=0,
        uplink_chunk_bytes=16384,
        deadline_seconds=received.task.deadline_seconds,
        max_score_drop_permille=100,
        check_in_seconds=5,
    )
    device.fetch(WEIGHTS)
    site.until(lambda: len(device.blob) == BLOB_CHUNKS, "all chunks of the weights are there")
    assert b"".join(device.blob[n] for n in sorted(device.blob)) == BLOB


def test_what_cannot_be_counted_in_is_counted_by_reason_and_explained(make_site: MakeSite) -> None:
    names = ["good", "bad", "slow", "stranger"]
    site = make_site(names)
    for name in names:
        site.add(name)
    bounds = {PLAN: {"values": VALUES, "bounds": [[VALUES, 5000]]}}
    site.start(names=["good", "bad", "slow"], target=2, plans=bounds, uplink_chunk_bytes=512)
    good, bad, slow, stranger = (site.devices[name] for name in names)
    task = bad.tasks.get(timeout=PATIENCE_SECONDS).task
    values, samples = trained(5)
    chunks = delta_chunks(task, values, samples)
    other = "ff" * 8
    foreign = [replace(c, campaign=bytes.fromhex(other)) for c in chunks]
    bad.send(foreign)
    bad.send([replace(c, plan=b"12345678") for c in chunks])
    bad.send([replace(c, weights=b"12345678") for c in chunks])
    bad.send([replace(c, correct_after=11) for c in chunks])
    bad.send([replace(c, train_samples=65535) for c in chunks])
    absurd = values.copy()
    absurd[7] = -(2**31)
    bad.send(delta_chunks(task, absurd, samples))
    bad.send([replace(c, coded_crc32=c.coded_crc32 ^ 1) for c in chunks])
    flipped = bytearray(b"".join(c.coded for c in chunks))
    flipped[-1] ^= 1
    bad.send(delta_chunks(task, values, samples, coded_all=bytes(flipped[:-2])))
    bad.send_raw(b"\x92\x01")
    bad.send_raw(chunks[0].encode() + b"\x00")
    bad.send([replace(chunks[0], chunks=7)])
    bad.send([chunks[0], replace(chunks[1], train_steps=3)])
    stranger.send(chunks)
    good.send(delta_chunks(task, *trained(1)))
    good.send(delta_chunks(task, *trained(1)))
    bad.send(delta_chunks(task, *trained(2)))
    reply = site.collect_closed()
    slow.send(chunks)
    site.until(lambda: site.client.collect(CAMPAIGN, 1)["late"] == 1, "the late delta is counted")
    reply = site.client.collect(CAMPAIGN, 1)
    assert reply["accepted"] == 2
    assert reply["duplicate"] == 1
    assert reply["refused"] == {
        "unknown-round": 1,
        "wrong-plan": 1,
        "wrong-weights": 1,
        "range": 3,
        "crc": 1,
        "coding": 1,
        "malformed": 2,
        "inconsistent-chunks": 3,
        "not-in-cohort": 1,
    }
    assert_sum(reply, [1, 2])
    (told,) = site.client.hello()["rounds"]
    assert all(told[name] == reply[name] for name in ("late", "duplicate", "refused"))
    explained = {(e["device"], e["kind"]) for e in reply["explanations"]}
    assert ("stranger", "not-in-cohort") in explained
    assert ("slow", "late") in explained
    assert any("value 7 is -2147483648" in e["detail"] for e in reply["explanations"])
    detail = next(e["detail"] for e in reply["explanations"] if e["kind"] == "wrong-plan")
    assert b"12345678".hex() in detail
    assert PLAN[:16] in detail


def test_a_gateway_killed_in_the_middle_of_a_delta_loses_nothing(make_site: MakeSite) -> None:
    names = ["cow-0", "cow-1", "cow-2"]
    site = make_site(names)
    reached, go = threading.Event(), threading.Event()
    for seed, name in enumerate(names):
        site.add(name, trains(seed))

    def hold(chunk: int) -> None:
        if chunk == 1:
            reached.set()
            assert go.wait(PATIENCE_SECONDS)

    site.devices["cow-1"].before_chunk = hold
    site.start(uplink_chunk_bytes=512)
    assert reached.wait(PATIENCE_SECONDS)
    site.until(lambda: site.client.collect(CAMPAIGN, 1)["accepted"] == 2, "two are accepted")
    site.kill_gateway()
    go.set()  # the rest is sent while no gateway is there, and again later for want of a receipt
    time.sleep(0.3)
    site.start_gateway()
    reply = site.collect_closed()
    assert reply["accepted"] == 3
    assert_sum(reply, [0, 1, 2])
    assert reply["refused"] == {}
    assert site.devices["cow-1"].done.wait(5)


@pytest.mark.slow
def test_a_gateway_killed_at_random_instants_counts_every_delta_once(make_site: MakeSite) -> None:
    names = [f"cow-{i}" for i in range(6)]
    site = make_site(names)
    for seed, name in enumerate(names):
        device = site.add(name, trains(seed))
        device.before_chunk = lambda chunk: time.sleep(0.15)
    random = np.random.default_rng(3)
    site.start(uplink_chunk_bytes=512)
    for _ in range(6):
        time.sleep(random.uniform(0.05, 0.5))
        site.kill_gateway()
        site.start_gateway()
    reply = site.collect_closed()
    assert reply["accepted"] == len(names)
    assert_sum(reply, list(range(len(names))))
    assert reply["refused"] == {}


def test_a_broker_that_lost_everything_in_the_middle_of_a_round_harms_nothing(
    make_site: MakeSite,
) -> None:
    names = ["cow-0", "cow-1"]
    site = make_site(names)
    reached, go = threading.Event(), threading.Event()
    site.add("cow-0", trains(0))
    site.add("cow-1", trains(1))

    def hold(chunk: int) -> None:
        if chunk == 2:
            reached.set()
            assert go.wait(PATIENCE_SECONDS)

    site.devices["cow-1"].before_chunk = hold
    site.start(uplink_chunk_bytes=512)
    assert reached.wait(PATIENCE_SECONDS)
    site.kill_broker()
    go.set()
    time.sleep(0.5)
    site.broker.start()
    reply = site.collect_closed()
    assert reply["accepted"] == 2
    assert_sum(reply, [0, 1])
    assert reply["refused"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_broker_killed_with_its_data_at_random_instants_loses_and_doubles_nothing(
    make_site: MakeSite, seed: int
) -> None:
    names = [f"cow-{i}" for i in range(6)]
    site = make_site(names)
    for number, name in enumerate(names):
        device = site.add(name, trains(number))
        device.before_chunk = lambda chunk: time.sleep(0.15)
    random = np.random.default_rng(seed)
    site.start(uplink_chunk_bytes=512)
    for _ in range(3):
        time.sleep(random.uniform(0.05, 1.5))
        site.kill_broker()
        site.broker.start()
    reply = site.collect_closed()
    assert reply["accepted"] == len(names)
    assert_sum(reply, list(range(len(names))))
    assert reply["refused"] == {}
    for device in site.devices.values():
        assert device.done.wait(10), "every device has its receipt"
        receipts = {one.coded_crc32 for one in device.receipts.queue}
        assert len(receipts) == 1


def test_what_a_broker_forgot_is_published_again(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    site.add("cow").close()
    site.start()
    time.sleep(1.5)
    site.kill_broker()
    site.broker.start()
    device = FakeDevice("cow", site.config.port, site.passwords["cow"], trains(0))
    site.devices["cow"] = device
    device.fetch(WEIGHTS)
    site.until(lambda: len(device.blob) == BLOB_CHUNKS, "the weights are back")
    reply = site.collect_closed()
    assert_sum(reply, [0])
    again = device.tasks.get(timeout=PATIENCE_SECONDS)
    assert again.task.deadline_seconds == 600, "a task has one content"
    assert again.expiry_seconds is not None
    assert again.expiry_seconds < 600, "the deadline is the round's, not a new one"


def test_weights_that_the_broker_lost_between_two_rounds_are_there_in_the_second(
    make_site: MakeSite,
) -> None:
    site = make_site(["cow"])
    device = site.add("cow", trains(0))
    site.start()
    assert site.collect_closed()["accepted"] == 1
    site.kill_broker()
    site.broker.start()
    site.until(lambda: site.is_online("cow"), "the device is back")
    device.train = None
    site.start(round=2, blobs=[])
    device.fetch(WEIGHTS)
    site.until(lambda: len(device.blob) == BLOB_CHUNKS, "the weights are there")


def retained_topics(site: Site) -> set[str]:
    """What the broker holds of tasks and weights, as the gateway's own user sees it."""
    seen: set[str] = set()
    subscribed = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set(GATEWAY, site.passwords[GATEWAY])
    client.on_message = lambda c, u, message: seen.add(message.topic)
    client.on_subscribe = lambda *_: subscribed.set()
    site.stop_gateway()  # two clients can't have one name
    client.connect("127.0.0.1", site.config.port)
    client.loop_start()
    client.subscribe([(f"fleet/{FLEET}/{what}", 0) for what in ("blob/#", "to/#", "gw/#")])
    assert subscribed.wait(PATIENCE_SECONDS)
    time.sleep(0.3)
    client.disconnect()
    client.loop_stop()
    return seen


def test_nothing_of_a_round_that_is_over_stays_at_the_broker(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    device = site.add("cow", trains(0))
    site.start()
    assert site.collect_closed()["accepted"] == 1
    device.publish(topics.delta(FLEET, GATEWAY, "cow"), b"rubbish", retain=True)
    site.until(lambda: sum(site.client.hello()["refused"].values()) == 1, "the rubbish was seen")
    assert device.cleared.wait(PATIENCE_SECONDS)
    site.until(lambda: retained_topics(site) == set(), "all is gone")


def test_nobody_receives_what_is_meant_for_another(make_site: MakeSite) -> None:
    site = make_site(["cow-0", "cow-1"])
    site.add("cow-0", trains(0))
    other = site.add("cow-1")
    other.client.subscribe([("#", 1), (f"fleet/{FLEET}/to/+/+", 1)])
    site.start(names=["cow-0"])
    assert site.collect_closed()["accepted"] == 1
    assert other.receipts.empty()
    assert other.tasks.empty()


def test_the_broker_writes_nothing_to_disk(make_site: MakeSite) -> None:
    names = [f"cow-{i}" for i in range(4)]
    site = make_site(names)
    for seed, name in enumerate(names):
        site.add(name, trains(seed))
    kept = {path.name for path in site.broker.folder.iterdir()}
    site.start()
    assert site.collect_closed()["accepted"] == len(names)
    site.broker.stop()
    assert {path.name for path in site.broker.folder.iterdir()} == kept - {"mosquitto.pid"}
    ours = {"mosquitto.conf", "passwords", "access", "own.json"}
    assert kept == {*ours, "mosquitto.log", "mosquitto.pid"}


def test_a_round_closes_at_its_deadline_with_what_is_there(make_site: MakeSite) -> None:
    site = make_site(["cow-0", "cow-1"])
    site.add("cow-0", trains(0))
    site.add("cow-1")
    site.start(deadline_seconds=10, check_in_seconds=0)  # in which cow-0 is heard of anywhere
    reply = site.collect_closed()
    assert reply["state"] == "closed"
    assert reply["accepted"] == 1
    assert_sum(reply, [0])
    assert "nothing from cow-1" in site.log


def test_a_round_closes_as_soon_as_nothing_more_can_come(make_site: MakeSite) -> None:
    site = make_site(["cow-0", "cow-1"])
    site.add("cow-0", trains(0))
    device = site.add("cow-1")
    site.start(deadline_seconds=600)
    task = device.tasks.get(timeout=PATIENCE_SECONDS).task
    device.say(DeviceState.DECLINED, Reason.SCORE_DROPPED, task)
    reply = site.collect_closed()
    assert reply["declined"] == {"score-dropped": 1}
    assert_sum(reply, [0])


def test_a_cancelled_round_gives_no_sums_and_takes_the_tasks_away(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    device = site.add("cow")
    site.start()
    device.tasks.get(timeout=PATIENCE_SECONDS)
    assert site.client.cancel(CAMPAIGN, 1) == {"state": "cancelled"}
    assert site.client.cancel(CAMPAIGN, 1) == {"state": "cancelled"}
    assert device.cleared.wait(PATIENCE_SECONDS)
    reply = site.client.collect(CAMPAIGN, 1)
    assert reply["state"] == "cancelled"
    assert "sums" not in reply
    assert site.client.cancel(CAMPAIGN, 99) == {"state": "unknown"}


def test_a_device_that_vanishes_is_shown_offline(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    device = site.add("cow")
    device.client.loop_stop()
    sock = device.client.socket()
    assert sock
    sock.close()  # no DISCONNECT: the broker publishes the will
    site.until(lambda: not site.client.hello()["devices"][0]["online"], "the will was seen")


def test_requests_that_make_no_sense_are_refused_by_name(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    site.add("cow")
    cases: list[tuple[dict, str]] = [
        ({"blobs": []}, WEIGHTS),
        ({"blobs": [{"sha256": WEIGHTS, "data": b"other"}]}, "digest"),
        ({"plans": {}}, PLAN[:8]),
        ({"seed": 2**32}, "seed"),
    ]
    for changes, named in cases:
        with pytest.raises(GatewayError, match=named):
            site.start(**changes)
    site.start()
    with pytest.raises(GatewayError, match="another content"):
        site.start(seed=8)
    assert site.start(round=2) == {"state": "closed", "devices": {"cow": "busy"}}
    with pytest.raises(GatewayError, match="wait_seconds"):
        site.client.watch([(CAMPAIGN, 1)], wait_seconds=60)
    with pytest.raises(GatewayError, match="hello, start, collect, cancel, watch, access"):
        site.client.request("dance")


def test_arrivals_are_told_and_a_part_is_taken_while_the_round_runs(
    make_site: MakeSite,
) -> None:
    site = make_site(["cow", "sheep"])
    site.add("cow", lambda task: (np.arange(1000, dtype=np.int32), 5))
    site.add("sheep")
    site.start(fold={"name": "arrivals"})
    wait_until(
        lambda: site.client.watch([(CAMPAIGN, 1)], 5, {CAMPAIGN: 1}) == (0, True),
        lambda: f"a delta arrives\n{site.log}",
    )
    taken = site.client.collect(CAMPAIGN, 1, part=0)
    (one,) = taken["sums"][PLAN]
    assert (taken["state"], one["devices"], one["weight"]) == ("running", 1, 5)
    assert np.frombuffer(one["values"], "<i8").tolist() == [5 * n for n in range(1000)]


def test_sigterm_ends_the_gateway_in_order(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    assert site.stop_gateway() == 0
    assert not site.settings.socket.exists()
    assert "Traceback" not in site.log
    with pytest.raises(GatewayError, match="is the gateway daemon running"):
        site.client.hello()


def run_gateway(site: Site, settings: object) -> subprocess.CompletedProcess[str]:
    path = site.folder / "other.toml"
    settings.write(path)  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "fleet.gateway", "--config", str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def test_a_broker_that_refuses_the_login_ends_the_gateway_with_one_message(
    make_site: MakeSite,
) -> None:
    site = make_site([])
    wrong = site.folder / "wrong.password"
    wrong.write_text("not it\n")
    settings = site.settings.model_copy(
        update={
            "store": site.folder / "other.sqlite",
            "socket": site.folder / "other.sock",
            "broker": site.settings.broker.model_copy(update={"password_file": wrong}),
        }
    )
    done = run_gateway(site, settings)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "refuses user north" in last
    assert str(wrong) in last
    assert "Traceback" not in done.stderr


def test_two_gateways_cannot_share_a_store(make_site: MakeSite) -> None:
    site = make_site([])
    settings = site.settings.model_copy(update={"socket": site.folder / "other.sock"})
    done = run_gateway(site, settings)
    assert done.returncode == 1
    assert "used by another gateway process" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_waits_for_a_broker_that_is_not_up_yet(make_site: MakeSite) -> None:
    site = make_site(["cow"])
    site.stop_gateway()
    site.broker.stop()
    site.start_gateway()
    assert site.client.hello()["devices"] == []
    site.broker.start()
    site.add("cow")


def test_memory_does_not_grow_with_the_cohort(make_site: MakeSite) -> None:
    """Deltas of 20,000 values: 160 kB a sum. Folding 24 more of them must not keep any."""
    values = 20_000
    names = [f"cow-{i}" for i in range(32)]
    site = make_site(names)
    for name in names:
        site.add(name)
    site.start(values=values, target=len(names))
    random = np.random.default_rng(0)
    total = np.zeros(values, np.int64)
    assert site.process
    memory = []
    for name in names:
        delta = random.integers(-3000, 3000, values).astype(np.int32)
        total += delta.astype(np.int64) * 3
        device = site.devices[name]
        device.send(delta_chunks(device.tasks.get(timeout=PATIENCE_SECONDS).task, delta, 3))
        memory.append(memory_kib(site.process.pid))
    reply = site.collect_closed()
    assert np.array_equal(np.frombuffer(reply["sums"][PLAN][0]["values"], "<i8"), total)
    assert memory[-1] - memory[7] < 2_000, memory
