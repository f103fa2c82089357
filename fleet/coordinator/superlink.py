"""Flower's processes as context managers: SuperLink, its SuperExec, SuperNodes.

They are the stock programs of the installed `flwr`, each with its own log file, all with their own
`FLWR_HOME` in one work folder. A process can be killed (`kill`) and started again with the same
arguments (`start`), which is what the kill tests do and what a service manager does in production.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.coordinator.settings import CoordinatorSettings, LinkTls
from fleet.errors import ConfigurationError, FlowerError
from fleet.files import write_whole
from fleet.gateway.config import GatewaySettings
from fleet.ports import free_port
from fleet.security.listening import LOOPBACK

START_SECONDS = 60.0
STOP_SECONDS = 5.0
NODE_POLL_SECONDS = 0.25
"""Between looks of its SuperExec: idle, both took 5 % of a core at 0.1 s, and take 2.8 % now."""
_INTERPRETER = re.compile(r"^python[0-9.]*$")


def find_program(name: str) -> str:
    """Path of a program of the running Python's environment, else of PATH.

    Raises `FlowerError` where it is missing.
    """
    beside_python = Path(sys.executable).parent / name
    if beside_python.exists():
        return str(beside_python)
    found = shutil.which(name)
    if found is None:
        raise FlowerError(f"program {name} is missing; install it with: pip install flwr")
    return found


def flower_environment(work: Path, home: str, task_poll_seconds: float) -> dict[str, str]:
    """Environment of every Flower process: offline, quiet, short polls, own home folder."""
    environment = dict(os.environ)
    environment.update(
        {
            "FLWR_HOME": str(work / "flwr-home" / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(task_poll_seconds),
            # The SuperNode starts flower-superexec, and that flwr-clientapp, by name.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
            # Every ClientApp is a fresh process; numpy's thread pools would cost it more
            # than its work does.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Proxies must not see what goes over loopback.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
    )
    return environment


class ManagedProcess:
    """One child process in its own process group, with a log file.

    `start` may be called again after `kill` or `stop`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        environment: Mapping[str, str],
        pid_file: Path | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        """Nothing is started yet; `name` is what error messages call the process.

        With a `pid_file` the process outlives this one: another that starts the same command finds
        it running and takes it over. It has `stop_seconds` to stop by itself.
        """
        self.name = name
        self.command = list(command)
        self.log_file = log_file
        self._environment = dict(environment)
        self._pid_file = pid_file
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before the first start."""
        return self._adopted if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the program. Does nothing where it runs already."""
        if self.alive() or self.adopt():
            return
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        if self._pid_file is not None:
            self._pid_file.parent.mkdir(parents=True, exist_ok=True)
            left = {"pid": self._process.pid, "command": self.command}
            write_whole(self._pid_file, json.dumps(left))

    def adopt(self) -> bool:
        """Take over the process that an earlier one of us has left running; False without one."""
        if self._pid_file is None:
            return False
        try:
            left = json.loads(self._pid_file.read_text(encoding="utf-8"))
            pid, command = int(left["pid"]), list(left["command"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if self._identity(command) != self._identity(self.command) or not _runs(pid, command):
            return False
        self._process, self._adopted, self.command = None, pid, command
        return True

    def _identity(self, command: Sequence[str]) -> list[str]:
        """What two commands of the same process have in common, by whatever path it was started."""
        # An environment has its interpreter under several names.
        return [_INTERPRETER.sub("python", Path(command[0]).name), *command[1:]]

    def alive(self) -> bool:
        """True while the process runs."""
        if self._process is not None:
            return self._process.poll() is None
        return self._adopted is not None and _runs(self._adopted, self.command)

    def require_alive(self) -> None:
        """Raise `FlowerError` with the end of the log where the process has ended."""
        if not self.alive():
            code = None if self._process is None else self._process.returncode
            raise FlowerError(
                f"{self.name} ended with code {code}; its log {self.log_file} ends with:\n"
                f"{self.log_tail()}"
            )

    def log_tail(self, characters: int = 1500) -> str:
        """The end of the log file."""
        if not self.log_file.exists():
            return "(no log)"
        return self.log_file.read_text(errors="replace")[-characters:]

    def kill(self) -> None:
        """SIGKILL to the whole process group, as a power cut would end it."""
        self._signal_group(signal.SIGKILL)
        self._wait(STOP_SECONDS)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what is left of the group."""
        if self.pid is None:
            return
        self._signal_group(signal.SIGTERM)
        self._wait(self._stop_seconds)
        self._signal_group(signal.SIGKILL)
        self._wait(STOP_SECONDS)
        if self._pid_file is not None:
            self._pid_file.unlink(missing_ok=True)

    def _wait(self, seconds: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.05)

    def _signal_group(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def __enter__(self) -> Self:
        """Start the process."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self.stop()


def _runs(pid: int, command: Sequence[str]) -> bool:
    """Whether this process runs this command: its number may be another's by now."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # A script's line has its interpreter in front.
    said = [part.decode(errors="replace") for part in line if part]
    return state != "Z" and said[-len(command) :] == list(command)


class SuperLink:
    """A SuperLink with SQLite state and its own SuperExec, on loopback unless it is told otherwise.

    State lies in a file and the SuperExec is a process of its own, so that a SuperLink that
    is killed and started again within a few seconds finds its run and its nodes again.
    """

    def __init__(
        self,
        work: Path,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        tls: LinkTls | None = None,
        knows_nodes: bool = False,
        is_adopting: bool = False,
    ) -> None:
        """All files go into `work`; without `port` a free one is taken.

        Beyond loopback only what SuperNodes need can be reached (`guarded_superlink`). With
        `knows_nodes` it lets those in only that `Control` has let in. With `is_adopting` its
        processes outlive whoever started them, and are taken over by the next.
        """
        self.work = work
        self.port = free_port() if port is None else port
        self.ca = None if tls is None else tls.ca.absolute()
        self._trust = None if self.ca is None else trusting(self.ca)
        self._host = host
        work.mkdir(parents=True, exist_ok=True)
        environment = flower_environment(work, "superlink", 1.0)
        secret = work / "superexec.secret"
        if not secret.exists():
            secret.touch(mode=0o600)
            secret.write_bytes(secrets.token_bytes(32))
        program = [find_program("flower-superlink")]
        if host not in LOOPBACK:
            program = [sys.executable, "-m", "fleet.coordinator.guarded_superlink"]
        options = ["--insecure"]
        if tls is not None:
            options = [
                *("--ssl-certfile", str(tls.certificate.absolute())),
                *("--ssl-keyfile", str(tls.key.absolute())),
                *("--ssl-ca-certfile", str(self.ca)),
            ]
        if knows_nodes:
            options.append("--enable-supernode-auth")
        self.link = ManagedProcess(
            "flower-superlink",
            [
                *program,
                *options,
                "--isolation",
                "process",
                "--host",
                host,
                "--port",
                str(self.port),
                "--database",
                str(work / "superlink.sqlite"),
                "--superexec-auth-secret-file",
                str(secret),
                "--disable-runtime-dependency-installation",
            ],
            work / "logs" / "superlink.log",
            environment,
            work / "superlink.pid" if is_adopting else None,
        )
        self.superexec = ManagedProcess(
            "flower-superexec",
            [
                find_program("flower-superexec"),
                *_trust_options(self.ca),
                "--runtime-api-address",
                self.address,
                "--superexec-auth-secret-file",
                str(secret),
            ],
            work / "logs" / "superexec.log",
            environment,
            work / "superexec.pid" if is_adopting else None,
        )

    @property
    def address(self) -> str:
        """`host:port` for SuperNodes on this machine and for the control interface."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> None:
        """Start both processes and return when the SuperLink answers."""
        self.link.start()
        self.wait_ready()
        self.superexec.start()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until the health endpoint answers. Raises `FlowerError`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.link.require_alive()
            try:
                if self.healthy():
                    return
            except ssl.SSLCertVerificationError as error:
                host = self.address.rpartition(":")[0].strip("[]")
                raise FlowerError(
                    f"the SuperLink's certificate isn't believed at {self.address} "
                    f"({error.verify_message}); issue it again with the fleet's authority, for "
                    f"this machine too: tinyfleet ca issue … --host NAME --host {host}"
                ) from None
            time.sleep(0.05)
        raise FlowerError(
            f"flower-superlink does not answer at {self.address} after {seconds:.0f} s; "
            f"see {self.link.log_file}"
        )

    def healthy(self) -> bool:
        """True where the SuperLink answers; `SSLCertVerificationError` where another one does."""
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self._trust is not None:
            handlers.append(urllib.request.HTTPSHandler(context=self._trust))
        scheme = "http" if self._trust is None else "https"
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(f"{scheme}://{self.address}/health", timeout=1.0):
                return True
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise error.reason from None
            return False
        except OSError:
            return False

    @property
    def logs(self) -> str:
        """Where its logs are, for messages."""
        return f"in {self.link.log_file.parent}"

    def processes_run(self) -> bool:
        """Whether both processes do."""
        return self.link.alive() and self.superexec.alive()

    def kill(self) -> None:
        """Kill the SuperLink alone; its SuperExec and ServerApp live on."""
        self.link.kill()

    def restart(self) -> None:
        """Start what does not run, on the same port and state."""
        self.start()

    def stop(self) -> None:
        """Stop both processes."""
        self.superexec.stop()
        self.link.stop()

    def __enter__(self) -> Self:
        """Start both processes."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop both processes."""
        self.stop()


class AttachedSuperLink:
    """Somebody else's SuperLink: it is used, never started or stopped."""

    def __init__(self, address: str, ca: Path | None = None) -> None:
        """`address` is `host:port` of its control interface, which has TLS where `ca` is given."""
        self.address = address
        self.ca = ca

    @property
    def logs(self) -> str:
        """Where its logs are, for messages."""
        return f"with whoever runs {self.address}"

    def start(self) -> None:
        """It runs, or is waited for."""

    def restart(self) -> None:
        """Not ours to restart."""

    def stop(self) -> None:
        """Not ours to stop."""

    def processes_run(self) -> bool:
        """Nothing is known of its processes; it shows when it is asked."""
        return True


def superlink_of(settings: CoordinatorSettings) -> SuperLink | AttachedSuperLink:
    """The SuperLink that a service's settings describe; nothing is started."""
    link = settings.superlink
    if link.port is None:
        return AttachedSuperLink(link.address, link.ca)
    return SuperLink(
        settings.work,
        link.port,
        host=link.host,
        tls=link.tls,
        knows_nodes=link.gateway_keys is not None,
        is_adopting=True,
    )


def trusting(ca: Path) -> ssl.SSLContext:
    """Of a client that believes this authority only. Raises `ConfigurationError`."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"ca {ca}: can't be used ({error}); it is the ca.crt that `tinyfleet ca init` made"
        ) from None


def _trust_options(ca: Path | None) -> list[str]:
    """How Flower's programs are told whom to believe."""
    return ["--insecure"] if ca is None else ["--root-certificates", str(ca.absolute())]


class SuperNode(ManagedProcess):
    """A stock SuperNode beside a gateway daemon, whose unix socket is in its node config."""

    def __init__(
        self,
        work: Path,
        superlink_address: str,
        gateway: str,
        socket_path: Path,
        pid_file: Path | None = None,
        *,
        ca: Path | None = None,
        key: Path | None = None,
    ) -> None:
        """`gateway` names the log file and must be the daemon's own name.

        With a `ca` the SuperLink is dialled with TLS; with a `key` it is told by it who this is.
        """
        self.gateway = gateway
        super().__init__(
            f"flower-supernode of gateway {gateway}",
            [
                find_program("flower-supernode"),
                *_trust_options(ca),
                *([] if key is None else ["--auth-supernode-private-key", str(key)]),
                "--superlink",
                superlink_address,
                "--port",
                str(free_port()),
                "--node-config",
                f'gateway="{gateway}" socket="{socket_path}"',
            ],
            work / "logs" / f"supernode-{gateway}.log",
            # Two SuperNodes that install the app into one home would race.
            flower_environment(work, gateway, NODE_POLL_SECONDS),
            pid_file,
        )

    def _identity(self, command: Sequence[str]) -> list[str]:
        """All but the port, which is a free one each time."""
        command = super()._identity(command)
        at = command.index("--port") if "--port" in command else len(command)
        return [*command[:at], *command[at + 2 :]]


def supernode_of(settings: GatewaySettings) -> SuperNode:
    """The SuperNode beside a gateway; it outlives a gateway that is killed."""
    work = settings.store.parent / f"{settings.gateway}-flower"
    return SuperNode(
        work,
        settings.superlink,
        settings.gateway,
        settings.socket,
        pid_file=work / "supernode.pid",
        ca=settings.superlink_ca,
        key=settings.superlink_key,
    )
