"""Submits and watches runs through the SuperLink's control interface.

`flwr.supercore.control` is private, and this is the only module that uses it (`flwr` is
pinned to one minor version for its sake); the public way, `flwr run` as a program, takes
three seconds where this takes milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fleet.coordinator.superlink import trusting
from fleet.errors import FlowerError

APP_FOLDER = Path(__file__).resolve().parent.parent / "flower_app"


@dataclass(frozen=True)
class RunState:
    """State of a run: `pending`, `starting`, `running` or `finished`, then with an outcome."""

    status: str
    outcome: str = ""
    details: str = ""

    @property
    def ended(self) -> bool:
        """True where nothing of the run goes on."""
        return self.status == "finished"


@dataclass(frozen=True)
class Node:
    """A SuperNode that was let in by its public key (PEM); `is_out` once it was taken out."""

    id: int
    public_key: bytes
    is_out: bool


class Control:
    """Client of a SuperLink's control interface."""

    def __init__(self, address: str, ca: Path | None = None) -> None:
        """`address` is `host:port`; with a `ca` (file) it is dialled with TLS. Nothing is sent yet.

        Raises `ConfigurationError` where the file is no authority's certificate.
        """
        if ca is not None:
            trusting(ca)
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=ca is None,
            root_certificates=None if ca is None else ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="tinyfleet")],
        )

    def start_run(self, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Submit our app with these overrides of its configuration; returns the run's id."""
        content = build_fab_from_disk(APP_FOLDER)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config))
        )
        try:
            response = self._client.StartRun(request)
        except httpx.HTTPError as error:
            raise FlowerError(f"SuperLink {self._address} refuses the run: {error}") from None
        if not response.HasField("run_id"):
            raise FlowerError(f"SuperLink {self._address} took the app but started no run")
        return int(response.run_id)

    def run_state(self, run: int) -> RunState | None:
        """State of a run; None where the SuperLink doesn't know it. Raises `FlowerError`."""
        try:
            response = self._client.ListRuns(ListRunsRequest(run_id=run))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise FlowerError(f"SuperLink {self._address}: {error}") from None
        except httpx.HTTPError as error:
            raise FlowerError(f"SuperLink {self._address} does not answer: {error}") from None
        found = response.run_dict.get(run)
        if found is None:
            return None
        return RunState(found.status.status, found.status.sub_status, found.status.details)

    def stop_run(self, run: int) -> None:
        """End a run's ServerApp. What gateways do goes on; cancel rounds first."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run))
        except httpx.HTTPError as error:
            raise FlowerError(f"SuperLink {self._address} can't stop {run}: {error}") from None

    def nodes(self) -> tuple[Node, ...]:
        """SuperNodes with keys, those that were taken out as well. Raises `FlowerError`."""
        try:
            response = self._client.ListNodes(ListNodesRequest())
        except httpx.HTTPError as error:
            raise FlowerError(f"SuperLink {self._address} lists no nodes: {error}") from None
        return tuple(
            Node(int(one.node_id), bytes(one.public_key), one.status == "unregistered")
            for one in response.nodes_info
        )

    def let_in(self, gateway: str, public_key: bytes) -> None:
        """Let the SuperNode with this key (PEM) in. Raises `FlowerError`."""
        request = RegisterNodeRequest(public_key=public_key, name=gateway)
        try:
            self._client.RegisterNode(request)
        except httpx.HTTPError as error:
            raise FlowerError(
                f"SuperLink {self._address} refuses the key of gateway {gateway}: {error}"
            ) from None

    def take_out(self, node: int) -> None:
        """Let a SuperNode in no more; its key is never taken again. Raises `FlowerError`."""
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        except httpx.HTTPError as error:
            raise FlowerError(f"SuperLink {self._address} can't take {node} out: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()
