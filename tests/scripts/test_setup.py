"""Setup on a machine that has this and lacks that: what apt-get is asked for, and what stops it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("awk", "bash", "cat", "cksum", "dirname", "env", "grep", "head", "ls", "mktemp"),
    *("rm", "sed", "sort", "tail", "tee", "touch", "tr"),
)
NEEDED = (
    *("mosquitto", "mosquitto_passwd", "gcc", "make", "arm-none-eabi-gcc", "clang"),
    *("cppcheck", "qemu-system-arm", "qemu-aarch64"),
)
OPTIONAL = (
    *("chromium", "debootstrap", "docker", "docker-compose", "dockerd", "iptables"),
    *("prometheus", "promtool"),
)
# Says what it was asked for, and has all packages but those of ABSENT; simulates like the real one.
APT_GET = """\
#!/bin/sh
echo "$*" >>"$TOLD"
for package in $ABSENT; do
    case " $* " in *" $package "*) exit 100;; esac
done
"""


@dataclass
class Machine:
    """A machine with a checkout and an environment, whose commands are in one folder."""

    folder: Path

    @property
    def commands(self) -> Path:
        return self.folder / "bin"

    def command(self, name: str, text: str = "#!/bin/sh\n") -> None:
        path = self.commands / name
        path.write_text(text, "utf-8")
        path.chmod(0o755)

    def set_up(self, *, absent: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.commands),
            "TOLD": str(self.folder / "told"),
            "ABSENT": absent,
            "TINYFLEET_VENV": str(self.folder / "venv"),
        }
        command = ["bash", str(self.folder / "scripts" / "setup"), "dev"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def asked(self) -> list[str]:
        """What apt-get was to install, in order; simulations aren't."""
        told = self.folder / "told"
        lines = told.read_text("utf-8").splitlines() if told.exists() else []
        told.unlink(missing_ok=True)
        return [one for one in lines if "--simulate" not in one]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    found.commands.mkdir()
    for name in COMMANDS:
        (found.commands / name).symlink_to(shutil.which(name) or pytest.fail(name))
    for name in NEEDED:
        found.command(name)
    found.command("id", "#!/bin/sh\necho 0\n")
    found.command("apt-get", APT_GET)
    (tmp_path / "scripts").mkdir()
    # Without the folders that a real machine has beside: this one has its commands only.
    text = (ROOT / "scripts" / "setup").read_text("utf-8")
    assert text.count(":/usr/sbin:/sbin") == 1
    text = text.replace(":/usr/sbin:/sbin", "")
    (tmp_path / "scripts" / "setup").write_text(text, "utf-8")
    for name in ("pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("device_runtime/codec", "device_runtime/include"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("python", "tinyfleet"):
        shutil.copy(found.commands / "gcc", tmp_path / "venv" / "bin" / name)
    return found


def packages(line: str) -> list[str]:
    words = line.split()
    return words[words.index("--no-install-recommends") + 1 :]


def test_what_tests_can_skip_is_installed_where_it_can_be_had(machine: Machine) -> None:
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    (line,) = machine.asked()
    assert sorted(packages(line)) == [
        *("chromium", "debootstrap", "docker-compose", "docker.io", "iptables", "prometheus")
    ]
    assert "skipped" not in done.stdout
    assert machine.set_up().returncode == 0
    assert machine.asked() == []


def test_a_machine_that_has_no_package_of_a_browser_is_set_up_without(machine: Machine) -> None:
    done = machine.set_up(absent="chromium")
    assert done.returncode == 0, done.stderr
    update, line = machine.asked()
    assert "update" in update.split()
    assert sorted(packages(line)) == [
        *("debootstrap", "docker-compose", "docker.io", "iptables", "prometheus")
    ]
    (said,) = [one for one in done.stdout.splitlines() if "skipped" in one]
    assert "chromium" in said
    assert "tests/fleet/dashboard/browser" in said
    assert (ROOT / "tests/fleet/dashboard/browser").is_dir()
    # Nothing is tried again each time.
    assert machine.set_up(absent="chromium").returncode == 0
    assert machine.asked() == []


def test_without_apt_get_only_what_tests_can_skip_may_be_missing(machine: Machine) -> None:
    (machine.commands / "apt-get").unlink()
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is skipped") == 6
    (machine.folder / "venv" / ".tinyfleet-dev").unlink()
    (machine.commands / "cppcheck").unlink()
    done = machine.set_up()
    assert done.returncode == 1
    assert "cppcheck" in done.stderr


def test_a_browser_of_another_name_will_do(machine: Machine) -> None:
    for name in {*OPTIONAL, "google-chrome"} - {"chromium"}:
        machine.command(name)
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert machine.asked() == []
    assert "skipped" not in done.stdout


def test_what_every_test_needs_still_stops_it(machine: Machine) -> None:
    (machine.commands / "cppcheck").unlink()
    done = machine.set_up(absent="cppcheck")
    assert done.returncode == 1
    assert "could not install: cppcheck" in done.stderr
    assert not (machine.folder / "venv" / ".tinyfleet-dev").exists()
