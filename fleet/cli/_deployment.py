"""`tinyfleet init`, `up`, `down`, `status`, `serve` and `gateway run`: what runs where."""

from __future__ import annotations

import gc
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from fleet.cli._errors import CommandError
from fleet.cli._output import console, print_json, table
from fleet.cli._progress import stage_bars
from fleet.cli._unmasker import ONE_OWNER
from fleet.gateway.__main__ import ALLOCATIONS
from fleet.service import containers, deployment
from fleet.service.deployment_keys import KEYS, UNMASKER


def init(
    folder: Path,
    fleet: str,
    sites: Sequence[str],
    gateways_per_site: int,
    *,
    is_private: bool,
    as_json: bool,
) -> None:
    """Make a deployment."""
    made = deployment.init(folder, fleet, sites, gateways_per_site, is_private=is_private)
    _show_made(folder, made, ["tinyfleet", "up", str(folder)], as_json=as_json)
    _show_keys(folder, is_private=is_private and not as_json)


def init_containers(
    folder: Path,
    fleet: str,
    sites: Sequence[str],
    gateways_per_site: int,
    hosts: Sequence[str],
    *,
    is_private: bool,
    as_json: bool,
) -> None:
    """Make a deployment for deploy/compose.yaml."""
    if len(sites) != 1 or gateways_per_site != containers.GATEWAYS:
        raise CommandError(
            f"deploy/compose.yaml has one site with {containers.GATEWAYS} gateways; others are set "
            "up beside it: docs/deploy.md"
        )
    made = containers.init(folder, fleet, sites[0], hosts, is_private=is_private)
    files = ["--env-file", str(folder / containers.ENV_FILE), "-f", "deploy/compose.yaml"]
    _show_made(folder, made, ["docker", "compose", *files, "up", "-d"], as_json=as_json)
    _show_keys(folder, is_private=is_private and not as_json)


def _show_keys(folder: Path, *, is_private: bool) -> None:
    if is_private:
        console().print(
            f"Its keys are in {folder / KEYS}, its unmasker in {folder / UNMASKER}. {ONE_OWNER} "
            "docs/howto/keys.md says how another party runs it.",
            soft_wrap=True,
        )


def _show_made(
    folder: Path, made: deployment.Deployment, start: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "url": made.url,
                "token_file": str(folder / "admin.token"),
                "sites": list(made.sites),
                "gateways": dict(made.gateways),
            }
        )
        return
    rows = [
        [
            site,
            ports.plain,
            ports.tls,
            ", ".join(g for g, of in made.gateways.items() if of == site),
        ]
        for site, ports in made.sites.items()
    ]
    columns = ["site", "port on this machine", "port with TLS", "gateways"]
    console().print(table(f"Fleet {made.fleet} in {folder}", columns, rows))
    console().print(
        f"The API will be at {made.url}, the administrator's token is in "
        f"{folder / 'admin.token'}. Start it all with: {shlex.join(start)}",
        soft_wrap=True,
    )


def up(folder: Path, *, as_json: bool) -> None:
    """Start a deployment; returns when it is ready."""
    with stage_bars(hidden=as_json) as tell:
        deployment.up(folder, tell)
    url = deployment.Deployment.read(folder).url
    if as_json:
        print_json({"ready": True, "url": url})
    else:
        stop = ["tinyfleet", "down", str(folder)]
        console().print(f"Ready at {url}. Stop it with: {shlex.join(stop)}", soft_wrap=True)


def down(folder: Path, *, as_json: bool) -> None:
    """Stop a deployment."""
    with stage_bars(hidden=as_json) as tell:
        stopped = deployment.down(folder, tell)
    if as_json:
        print_json({"stopped": stopped})
    else:
        console().print(f"{stopped} processes stopped.")


def status(folder: Path, *, as_json: bool) -> bool:
    """Which parts run; True where all do."""
    found = deployment.status(folder)
    if as_json:
        print_json({"parts": [{"part": name, "runs": runs} for name, runs in found.items()]})
    else:
        rows = [[name, "runs" if runs else "doesn't run"] for name, runs in found.items()]
        console().print(table(f"Parts of {folder}", ["part", ""], rows))
    return all(found.values())


def serve(config: Path) -> None:
    """Run a coordinator's service until it is told to stop."""
    from fleet.dashboard import mount
    from fleet.service.log import log_as_json
    from fleet.service.serve import serve as run

    log_as_json()
    run(
        config,
        metadata.version("tinyfleet"),
        lambda url: logging.getLogger(__name__).info("the API answers at %s", url),
        mount,
    )


def run_gateway(config: Path) -> None:
    """Run a site's gateway with its SuperNode until it is told to stop."""
    from fleet.service.gateway_site import GatewaySite
    from fleet.service.log import log_as_json

    site = GatewaySite(config)
    log_as_json(site.gateway)
    gc.set_threshold(ALLOCATIONS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: site.stop())
    site.run()
    sys.stderr.flush()
