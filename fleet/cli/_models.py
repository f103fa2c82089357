"""`tinyfleet models`: models, their bundles and versions."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from fleet.cli._errors import CommandError
from fleet.cli._output import console, percent, print_json, table
from fleet.service.client import Client
from fleet.service.schema import ModelView, VersionView


def parse_version(text: str) -> tuple[str, int]:
    """MODEL:NUMBER."""
    model, colon, number = text.rpartition(":")
    if not colon or not number.isdigit():
        raise CommandError(f"version {text}: write MODEL:NUMBER, such as digits:2")
    return model, int(number)


def import_bundles(
    client: Client, folders: Sequence[Path], model: str | None, *, as_json: bool
) -> None:
    """Bring bundles in, each with its weights."""
    from codegen.firmware.bundle import load_bundle

    made = []
    for folder in folders:
        bundle = load_bundle(folder)
        name = model or bundle.manifest.model.name
        text = (folder / "manifest.json").read_text("utf-8")
        made.append((folder, client.import_bundle(name, text, bundle.weights)))
    if as_json:
        print_json({"versions": [one.model_dump(mode="json") for _, one in made]})
        return
    rows = [[str(folder), f"{one.model}:{one.version}", one.state] for folder, one in made]
    console().print(table("Imported", ["bundle", "version", "state"], rows))


def show_list(client: Client, *, as_json: bool) -> None:
    """All models."""
    models = client.models()
    if as_json:
        print_json({"models": [one.model_dump(mode="json") for one in models]})
        return
    rows = [
        [one.model, ", ".join(of.board for of in one.bundles), len(one.versions), _newest(one)]
        for one in models
    ]
    console().print(table("Models", ["model", "boards", "versions", "released"], rows))


def _newest(model: ModelView) -> str:
    released = [one.version for one in model.versions if one.state == "released"]
    return f"{model.model}:{max(released)}" if released else "none"


def show(client: Client, name: str, *, as_json: bool) -> None:
    """One model with its versions."""
    model = client.model(name)
    if as_json:
        print_json({"model": model.model_dump(mode="json")})
        return
    rows = [
        [
            f"{one.model}:{one.version}",
            one.state,
            one.sha256[:16],
            "" if one.parent is None else f"{one.model}:{one.parent}",
            one.source,
            datetime.datetime.fromtimestamp(one.created).isoformat(" ", "minutes"),
        ]
        for one in model.versions
    ]
    columns = ["version", "state", "weights", "from", "by", "at"]
    console().print(table(f"Versions of {name}", columns, rows))


def export(client: Client, version: str, bundle: Path, out: Path, *, as_json: bool) -> None:
    """A version as ONNX that gives the device's integers."""
    from codegen.export import export_onnx
    from codegen.firmware.bundle import load_bundle

    model, number = parse_version(version)
    export_onnx(load_bundle(bundle), client.weights(model, number), out)
    if as_json:
        print_json({"version": version, "file": str(out)})
    else:
        console().print(f"{version} is in {out}.", soft_wrap=True)


def import_onnx(
    client: Client, model: str, path: Path, bundle: Path, parent: int | None, *, as_json: bool
) -> None:
    """A model that was trained elsewhere, as a new version."""
    from codegen.export import import_weights
    from codegen.firmware.bundle import load_bundle

    weights = import_weights(load_bundle(bundle), path)
    _print(client.add_version(model, weights, parent), as_json=as_json)


def release(client: Client, version: str, *, as_json: bool) -> None:
    """Campaigns begin with it from now on."""
    _print(client.release(*parse_version(version)), as_json=as_json)


def rollback(client: Client, model: str, *, as_json: bool) -> None:
    """Withdraw the newest released version."""
    _print(client.rollback_model(model), as_json=as_json)


def _print(version: VersionView, *, as_json: bool) -> None:
    if as_json:
        print_json({"version": version.model_dump(mode="json")})
    else:
        console().print(f"{version.model}:{version.version} is {version.state}.")


def compare(client: Client, first: str, second: str, *, as_json: bool) -> None:
    """Two versions of one model."""
    (model, one), (other, two) = parse_version(first), parse_version(second)
    if model != other:
        raise CommandError(f"{first} and {second} are of different models: nothing to compare")
    found = client.compare(model, one, two)
    if as_json:
        print_json({"comparison": found.model_dump(mode="json")})
        return
    share = found.changed_values / max(1, found.values)
    console().print(
        f"{found.changed_values:,} of {found.values:,} values differ ({percent(share)}); "
        f"{found.devices:,} devices have scored both: "
        f"{percent(found.mean_accuracy_first)} and {percent(found.mean_accuracy_second)}.",
        soft_wrap=True,
    )
