"""The images and the stack of one machine, from nothing to a restore on another one.

One story, told by tests that follow each other; figures for the docs are printed (`pytest -s`).
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from fleet.demo.digits import example_folder
from fleet.firmware import compile_firmware
from fleet.store import ENDED_STATES
from tests.deploy.engine import BASE, Engine, engine, kill
from tests.deploy.stack import PARTS, ROOT, Stack, devices, require_free_ports, targets
from tests.patience import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

DEVICES = 12
CAMPAIGN_SECONDS = 3600.0
DIGITS = ROOT / "examples" / "digits"
VERSIONS = "/opt/tinyfleet/lib/python3.11/site-packages/fleet/store/migrations/versions"
ASK = """
import ssl, urllib.request, urllib.error, sys
trust = ssl.create_default_context(cafile="/etc/tinyfleet/ca.crt")
for path in sys.argv[1:]:
    try:
        request = urllib.request.Request("https://coordinator:9092" + path, data=b"", method="POST")
        print(path, urllib.request.urlopen(request, context=trust, timeout=20).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


@pytest.fixture(scope="module")
def boxes() -> Iterator[Engine]:
    with engine() as found:
        yield found


@pytest.fixture(scope="module")
def images(boxes: Engine) -> Engine:
    environment = {**boxes.environment, "BASE": BASE, "TINYFLEET_TAG": "test"}
    for _ in range(2):  # the second time it has nothing to do
        began = time.monotonic()
        subprocess.run([ROOT / "deploy/images/build"], env=environment, check=True)
        print(f"building the images took {time.monotonic() - began:.0f} s")
    return boxes


@pytest.fixture(scope="module")
def stack(images: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_free_ports()
    made = Stack.init(images, tmp_path_factory.mktemp("stack") / "plant")
    try:
        yield made
    finally:
        made.down(forgets=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example, folder = example_folder(), tmp_path_factory.mktemp("firmware")
    plans = [f"{example / 'plans.json'}#{one}" for one in ("small", "middle")]
    calibration = example / "calibration.npz"
    model = example / "digits.onnx"
    return compile_firmware(model, "stm32f746", plans, calibration, folder / "digits").path


@pytest.fixture(scope="module")
def attached(
    stack: Stack, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    stack.wait_ready()
    assert stack.cli("models", "import", str(bundle)).returncode == 0
    with devices(stack, bundle, DEVICES, tmp_path_factory.mktemp("devices") / "log"):
        yield stack


def campaign(stack: Stack, file: str, name: str, folder: Path) -> str:
    """Start a campaign of the examples under another name; returns the name."""
    text = (DIGITS / file).read_text()
    path = folder / f"{name}.yaml"
    path.write_text(re.sub(r"^name: .*$", f"name: {name}", text, count=1, flags=re.MULTILINE))
    found = stack.cli("campaign", "start", str(path))
    assert found.returncode == 0, found.stderr
    return name


def state(stack: Stack, name: str) -> str:
    found = stack.cli("campaign", "show", name, "--json")
    return str(json.loads(found.stdout)["campaign"]["state"]) if found.returncode == 0 else "away"


def wait_for(stack: Stack, name: str, wanted: str) -> None:
    """A campaign takes minutes anyway, and its rounds wait for deadlines where much was killed."""
    end, began = time.monotonic() + CAMPAIGN_SECONDS, state(stack, name)
    while (found := state(stack, name)) != wanted:
        ended = found in ENDED_STATES and found != began
        assert not ended, f"{name} is {found}: {stack.cli('campaign', 'show', name).stdout}"
        assert time.monotonic() < end, f"{name} is {found}"
        time.sleep(2.0)


# ---- images ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["coordinator", "gateway"])
def test_an_image_is_small_nobodys_root_and_says_what_it_is(images: Engine, role: str) -> None:
    image = images.client.images.get(f"tinyfleet-{role}:test")
    base = images.client.images.get(BASE).attrs["Size"]
    size = image.attrs["Size"] / 1e6
    print(f"tinyfleet-{role}: {size:.0f} MB, of which the base is {base / 1e6:.0f}")
    assert size - base / 1e6 < {"coordinator": 450, "gateway": 300}[role]
    about = image.attrs["Config"]
    assert about["User"] == "10001:0"
    assert about["Labels"]["org.opencontainers.image.version"] == version("tinyfleet")
    assert about["Healthcheck"]["Test"][1:3] == ["tinyfleet", "health"]
    assert not [one for one in about["Env"] if re.search("(?i)password|token|secret|key", one)]
    run = {"remove": True, "read_only": True, "cap_drop": ["ALL"], "network_mode": "none"}
    said = images.client.containers.run(image, ["--version"], **run)
    assert said.decode().strip() == f"tinyfleet {version('tinyfleet')}"
    look = "find /opt /usr -type f ( -name pip -o -name gcc -o -name cc -o -name uv ) -print"
    packages = "find /opt/tinyfleet -type d -name tests -path */site-packages/*"
    for line in (look, packages):
        left = images.client.containers.run(
            image, line.split()[1:], entrypoint="find", stderr=False, **run
        )
        assert left.decode().split() == []


def test_an_image_makes_the_folder_where_nothing_else_is_installed(
    images: Engine, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    images.client.containers.run(
        "tinyfleet-coordinator:test",
        ["init", str(tmp_path / "plant"), "--containers", "--fleet", "plant"],
        volumes={str(tmp_path): {"bind": str(tmp_path)}},
        user="12345:0",
        remove=True,
        read_only=True,
        network_mode="none",
    )
    assert "TINYFLEET_USER=12345:0" in (tmp_path / "plant" / "compose.env").read_text()
    assert (tmp_path / "plant" / "secrets" / "store.url").stat().st_uid == 12345


# ---- the stack ---------------------------------------------------------------------------


def test_three_commands_make_a_stack_that_is_healthy(stack: Stack) -> None:
    stack.up()
    print(f"from `up` to ready with both gateways: {stack.wait_ready():.0f} s")
    for name in PARTS:
        host = stack.part(name).attrs["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert stack.part(name).attrs["Config"]["User"].split(":")[0] not in ("", "0"), name
    wait_until(lambda: set(targets().values()) == {"up"}, lambda: targets(), 1.0)

    def are_healthy() -> bool:
        checked = [stack.part(name).attrs["State"] for name in PARTS if name != "prometheus"]
        return {one["Health"]["Status"] for one in checked} == {"healthy"}

    wait_until(are_healthy, "all are healthy", 1.0)
    # No secret of the folder is in what the engine tells of a container, or in a log.
    secrets = [one.read_text().strip() for one in (stack.folder / "secrets").iterdir()]
    for name in PARTS:
        told = json.dumps(stack.part(name).attrs) + stack.log(name)
        assert not [one for one in secrets if one in told or json.dumps(one)[1:-1] in told], name


def test_other_containers_get_at_what_supernodes_need_and_at_nothing_else(stack: Stack) -> None:
    paths = [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/pull-messages",
        "/docs",
    ]
    code, said = stack.exec("gateway-2", "python", "-c", ASK, *paths, "/v1/fleet/pull-messages")
    assert code == 0, said
    answers = dict(line.rsplit(" ", 1) for line in said.splitlines())
    assert {answers[path] for path in paths} == {"404"}
    assert answers["/v1/fleet/pull-messages"] not in ("404", "200")  # it is asked who that is
    # A gateway knows nobody but the broker and the coordinator, and nobody outside.
    for host, is_there in (("broker", True), ("coordinator", True), ("database", False)):
        code, _ = stack.exec("gateway-2", "getent", "hosts", host)
        assert (code == 0) is is_there, host
    reach = "import socket; socket.create_connection(('1.1.1.1', 53), 2)"
    assert stack.exec("gateway-2", "python", "-c", reach)[0] != 0


def runs_again(stack: Stack, part: str, before: str) -> bool:
    found = stack.part(part)
    return found.attrs["State"]["StartedAt"] != before and found.status == "running"


def test_a_campaign_ends_though_all_that_it_runs_on_is_killed(
    attached: Stack, tmp_path: Path
) -> None:
    name = campaign(attached, "campaign.yaml", "digits", tmp_path)
    wait_for(attached, name, "running")
    for part in ("gateway-1", "broker", "database", "coordinator"):
        before = attached.part(part).attrs["State"]["StartedAt"]
        kill(attached.part(part))
        wait_until(functools.partial(runs_again, attached, part, before), f"{part} runs again", 0.5)
        time.sleep(5.0)
    wait_for(attached, name, "finished")


def test_a_gate_trips_and_a_campaign_is_rolled_back(attached: Stack, tmp_path: Path) -> None:
    look_back = campaign(attached, "evaluate.yaml", "look-back", tmp_path)
    wait_for(attached, look_back, "failed")
    assert "a gate failed" in attached.cli("campaign", "show", look_back).stdout
    assert attached.cli("campaign", "rollback", "digits").returncode == 0
    wait_for(attached, "digits", "rolled-back")
    with attached.client() as client:
        assert {one.version for one in client.all_devices("")} == {"digits:1"}


# ---- upgrades ----------------------------------------------------------------------------


def next_image(images: Engine, tag: str, body: str) -> None:
    """The coordinator of a version to come, which has one more migration; the same gateway."""
    newest = max(one.stem[:4] for one in (ROOT / "fleet/store/migrations/versions").glob("0*.py"))
    number = f"{int(newest) + 1:04}"
    text = (
        f"from alembic import op\\nimport sqlalchemy as sa\\nrevision = '{number}'\\n"
        f"down_revision = '{newest}'\\ndef upgrade():\\n{body}\\n"
    )
    images.build(
        f"tinyfleet-coordinator:{tag}",
        "FROM tinyfleet-coordinator:test",
        "USER 0",
        f'RUN printf "{text}" > {VERSIONS}/{number}_next.py',
        "USER 10001:0",
    )
    images.build(f"tinyfleet-gateway:{tag}", "FROM tinyfleet-gateway:test")


MAKE = "    op.create_table('next', sa.Column('x', sa.Integer()))"


def test_a_migration_that_fails_leaves_the_store_as_it_was(attached: Stack) -> None:
    next_image(attached.engine, "broken", f"{MAKE}\\n    op.execute('SELECT nonsense')")
    attached.up("coordinator", tag="broken")
    wait_until(lambda: "nonsense" in attached.log("coordinator"), "it says why", 1.0)
    tables = attached.exec("database", "psql", "--username=tinyfleet", "--command=\\dt")[1]
    assert "campaigns" in tables
    assert "next" not in tables
    attached.up("coordinator")
    attached.wait_ready()


def test_a_newer_image_migrates_and_the_campaign_goes_on_and_older_ones_refuse(
    attached: Stack, tmp_path: Path
) -> None:
    next_image(attached.engine, "next", MAKE)
    name = campaign(attached, "campaign.yaml", "again", tmp_path)
    wait_for(attached, name, "running")
    before = attached.cli("audit", "--json").stdout
    attached.up(tag="next")
    attached.wait_ready()
    assert attached.cli("audit", "--json").stdout == before
    wait_for(attached, name, "finished")
    old = {**attached.engine.environment, "TINYFLEET_TAG": "test"}
    line = ["tokens", "first", "eve", "--config", "/etc/tinyfleet/coordinator.toml"]
    found = subprocess.run(
        [*attached.command, "run", "--rm", "-T", "--no-deps", "coordinator", *line],
        env=old,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    assert "was written by a newer version of this program" in found.stdout + found.stderr


# ---- backup ------------------------------------------------------------------------------


def facts(stack: Stack) -> dict[str, object]:
    """What a fleet's people see, but for what changes by itself."""
    with stack.client() as client:
        return {
            "devices": [
                (one.device, one.site, one.labels, one.retired) for one in client.all_devices("")
            ],
            "campaigns": [
                (one.campaign, one.name, one.state, one.made)
                for one in client.campaigns().campaigns
            ],
            "versions": [
                (one.version, one.sha256, one.state) for one in client.model("digits").versions
            ],
            "tokens": [(one.token, one.who, one.role) for one in client.tokens()],
            "gateways": [(one.gateway, one.site) for one in client.gateways()],
        }


def test_a_backup_is_restored_on_an_empty_machine_and_campaigns_go_on_there(
    attached: Stack, tmp_path: Path
) -> None:
    began = time.monotonic()
    attached.backup(tmp_path / "plant.tar")
    size = (tmp_path / "plant.tar").stat().st_size
    print(f"a backup of {size / 1e6:.1f} MB took {time.monotonic() - began:.1f} s")
    before = facts(attached)
    subprocess.run(["cp", "-a", attached.folder, tmp_path / "elsewhere"], check=True)
    env = tmp_path / "elsewhere" / "compose.env"
    text = env.read_text().replace(str(attached.folder), str(tmp_path / "elsewhere"))
    # Its volumes are none that the first has: both are on one machine.
    env.write_text(text.replace(f"={attached.name}\n", "=tinyfleet-elsewhere\n"))
    attached.down()
    other = Stack(attached.engine, tmp_path / "elsewhere")
    try:
        began_there = time.time()
        other.up("database", tag="next")
        other.restore(tmp_path / "plant.tar")
        other.up(tag="next")
        other.wait_ready()
        print(f"restored and ready on an empty machine: {time.time() - began_there:.0f} s")
        assert facts(other) == before
        assert "store.restore" in other.cli("audit", "--limit", "1000").stdout
        # Its devices dial where they have always dialled, and are let in as before.
        wait_until(
            lambda: other.heard(began_there) == DEVICES, lambda: other.log("broker")[-2000:], 1.0
        )
        name = campaign(other, "campaign.yaml", "elsewhere", tmp_path)
        wait_for(other, name, "finished")
        with other.client() as client:
            made = {one.name: one.made for one in client.campaigns().campaigns}[name]
            assert {one.version for one in client.all_devices("")} == {made}
    finally:
        other.down(forgets=True)
