import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.boards import load_board
from codegen.firmware.bundle import SamplesInfo
from simulator.devices.flash_image import read_identity, read_sample_region
from simulator.errors import FleetError
from simulator.fleet.fleet import DeviceStats, Fleet
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.elf_image import ElfImage
from tests.patience import PATIENCE_SECONDS, wait_until

REGIONS = {
    name: {"address": 0x08060000 + number * 0x20000, "bytes": 131072, "sectors": [7 + number, 1]}
    for number, name in enumerate(
        ("boot", "firmware", "identity", "samples", "journal", "slot_a", "slot_b")
    )
}
"""Beside the image, whatever their names."""
SAMPLES = SamplesInfo.model_validate({**REGIONS["samples"], "units": 1})
DIGEST = "12" * 32


@pytest.fixture(scope="session")
def bundle(board: str, image: ElfImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copy(image.path, folder / "firmware.elf")
    manifest = {
        "board": {"name": board},
        "model": {"sample_digest": DIGEST},
        "flash": {**REGIONS, "samples": SAMPLES.model_dump()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "board.json").write_text(load_board(board).model_dump_json())
    return folder


@pytest.fixture
def echo_check() -> Iterator[tuple[tuple[str, int], dict[str, int]]]:
    """A server that sends bytes to each device and counts the right answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    counts = {"connected": 0, "right": 0, "wrong": 0}

    def serve(stream: socket.socket) -> None:
        with stream:
            stream.settimeout(PATIENCE_SECONDS)
            try:
                for size in (3, 60, 31):
                    sent = bytes(range(size))
                    stream.sendall(sent)
                    received = b""
                    while len(received) < size and (part := stream.recv(100)):
                        received += part
                    right = received == bytes(byte ^ 0xFF for byte in sent)
                    counts["right" if right else "wrong"] += 1
                stream.recv(1)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            counts["connected"] += 1
            threading.Thread(target=serve, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname(), counts
    listener.close()


def specs(bundle: Path, count: int) -> list[DeviceSpec]:
    return [
        DeviceSpec(
            f"device-{i:02}", bundle, "secret", np.full((5, 4), i, np.int8), np.arange(5), seed=i
        )
        for i in range(count)
    ]


def wait_for(
    fleet: Fleet, condition: Callable[[dict[str, DeviceStats]], bool]
) -> dict[str, DeviceStats]:
    wait_until(lambda: condition(fleet.stats()), fleet.stats)
    return fleet.stats()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_every_device_of_a_fleet_talks_to_the_server(
    bundle: Path, echo_check: tuple[tuple[str, int], dict[str, int]]
) -> None:
    address, counts = echo_check
    with Fleet(specs(bundle, 5), address, workers=2) as fleet:
        stats = wait_for(fleet, lambda s: all(d.bytes_up == 94 for d in s.values()))
        workers = fleet.worker_stats()
        assert len(workers) == 2
        assert len(stats) == 5
        assert {d.bytes_down for d in stats.values()} == {94}
        assert {d.state for d in stats.values()} <= {"idle", "running"}
        assert all(w.rss_bytes > 0 for w in workers)
    wait_until(lambda: counts["right"] + counts["wrong"] == 15, lambda: counts)
    assert counts == {"connected": 5, "right": 15, "wrong": 0}
    assert not any(alive(w.process) for w in workers)


def test_each_device_has_its_own_samples_in_its_flash(
    bundle: Path, echo_check: tuple[tuple[str, int], dict[str, int]]
) -> None:
    with Fleet(specs(bundle, 2), echo_check[0]) as fleet:
        for i in range(2):
            name, told = f"device-{i:02}", REGIONS["identity"]
            identity = read_identity(fleet.read_flash(name, told["address"], 1024))
            assert identity.device == name
            content = fleet.read_flash(name, SAMPLES.address, SAMPLES.bytes)
            log = read_sample_region(content, SAMPLES, DIGEST)
            assert log.samples.tolist() == [[i] * 4] * 5


def test_a_power_cycled_device_comes_back_and_dials_again(
    bundle: Path, echo_check: tuple[tuple[str, int], dict[str, int]]
) -> None:
    address, counts = echo_check
    with Fleet(specs(bundle, 2), address, workers=1) as fleet:
        wait_for(fleet, lambda s: all(d.bytes_up == 94 for d in s.values()))
        fleet.power_cycle("device-01", off_seconds=0.05)
        stats = wait_for(fleet, lambda s: s["device-01"].bytes_up == 188)
        assert stats["device-00"].dials == 1
        assert stats["device-01"].dials == 2
        fleet.power_off("device-00")
        stats = wait_for(fleet, lambda s: s["device-00"].state == "off")
        assert stats["device-00"].link == "on hook"
    assert counts["connected"] == 3


def test_a_fault_is_reported_and_the_other_devices_go_on(
    bundle: Path,
    image: ElfImage,
    echo_check: tuple[tuple[str, int], dict[str, int]],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    elf = (broken / "firmware.elf").read_bytes()
    # The stack pointer of the vector table points to below SRAM: the first push faults, and there
    # is no handler.
    start = elf.index(image.segments[0][1][:8])
    vectors = (0x1FFF0000).to_bytes(4, "little") + elf[start + 4 : start + 12] + bytes(4)
    (broken / "firmware.elf").write_bytes(elf[:start] + vectors + elf[start + 16 :])
    good, bad = specs(bundle, 2)
    bad = DeviceSpec(bad.device, broken, bad.password, bad.samples, bad.labels)
    with Fleet([good, bad], echo_check[0], workers=1) as fleet:
        stats = wait_for(
            fleet, lambda s: s["device-00"].bytes_up == 94 and s["device-01"].state == "fault"
        )
    assert stats["device-01"].fault is not None
    for part in ("device-01", "0x1ffe", "PC 0x0800", "write"):
        assert part in stats["device-01"].fault


def test_a_missing_bundle_names_the_device(bundle: Path, tmp_path: Path) -> None:
    lost = DeviceSpec("lost", tmp_path, "x", np.zeros((0, 4), np.int8), np.zeros(0, np.int64))
    with pytest.raises(FleetError, match=r"device lost, bundle .*board\.json"):
        Fleet([*specs(bundle, 1), lost], ("127.0.0.1", 1)).__enter__()


def test_an_unknown_machine_is_refused_before_anything_is_started(bundle: Path) -> None:
    strange = replace(specs(bundle, 1)[0], machine="abacus")
    with pytest.raises(
        FleetError, match="no machine 'abacus'; devices run as one of host, qemu, renode, unicorn"
    ):
        Fleet([strange], ("127.0.0.1", 1))


def test_names_must_differ_and_unknown_names_are_refused(bundle: Path) -> None:
    with pytest.raises(FleetError, match="own name"):
        Fleet(specs(bundle, 1) * 2, ("127.0.0.1", 1))
    with (
        Fleet(specs(bundle, 1), ("127.0.0.1", 1)) as fleet,
        pytest.raises(FleetError, match="no device 'nobody'"),
    ):
        fleet.power_cycle("nobody")


def test_a_killed_worker_is_an_error_and_not_a_hang(bundle: Path) -> None:
    import os
    import signal

    with Fleet(specs(bundle, 1), ("127.0.0.1", 1)) as fleet:
        os.kill(fleet.worker_stats()[0].process, signal.SIGKILL)
        with pytest.raises(FleetError, match="ended"):
            fleet.stats()


def test_workers_end_when_their_owner_is_killed(bundle: Path, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys

    script = tmp_path / "owner.py"
    script.write_text(
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from simulator.fleet.fleet import Fleet\n"
        "from simulator.machines.device_spec import DeviceSpec\n"
        "none = np.zeros((0, 4), np.int8), np.zeros(0, int)\n"
        "spec = DeviceSpec('a', Path(sys.argv[1]), 'x', *none)\n"
        "with Fleet([spec], ('127.0.0.1', 1)) as fleet:\n"
        "    print(fleet.worker_stats()[0].process, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, str(script), str(bundle)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    assert alive(worker)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not alive(worker), "the worker has ended")
