"""The gateway as a process of this machine: how it is started, and the file by which it learns of replicas."""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo_operator.api import LLMDeployment
from octavo_operator.local.plan import HOST, KEY_VARIABLES, OCTAVO
from octavo_operator.local.replica import Launch
from octavo_operator.render import grace_seconds

STARTUP_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Door:
    """What was asked of the gateway: its port (0: any free one), and who is let in.

    `keys`, and those in `key_files`: one of them is needed, if there are any. `arguments`: flags with limits of keys.
    """

    port: int = 0
    keys: tuple[str, ...] = ()
    key_files: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def is_closed(self) -> bool:
        """Whether a key is needed."""
        return bool(self.keys or self.key_files)


class GatewayFiles:
    """In a directory that is ours alone: the key by which replicas know the gateway, and which replicas there are."""

    def __init__(self, directory: Path) -> None:
        self.endpoints = directory / "endpoints.json"
        self.key_file = directory / "gateway.key"
        self.client_keys = directory / "clients.key"
        self.key = secrets.token_urlsafe(32)
        _write_secrets(self.key_file, [self.key])
        self._written: Mapping[str, Any] | None = None

    def let_in(self, door: Door) -> list[str]:
        """Flags for who is let in. A closed door needs one more key: we read the gateway's metrics too."""
        if not door.is_closed:
            return []
        files = [self.key_file, *door.key_files]
        if door.keys:
            _write_secrets(self.client_keys, door.keys)
            files.append(self.client_keys)
        return [each for file in files for each in ("--api-key-file", str(file))] + list(door.arguments)

    def write(self, endpoints: Mapping[str, Any]) -> None:
        """Replace what is said of replicas, at once: a reader meets the old file or the new one."""
        if endpoints == self._written:
            return
        new = self.endpoints.with_suffix(".new")
        new.write_text(json.dumps(endpoints))
        new.replace(self.endpoints)
        self._written = endpoints


def gateway_launch(
    deployment: LLMDeployment, door: Door, files: GatewayFiles, on_line: Callable[[str, str], None] | None = None
) -> Launch:
    """How the gateway is started."""
    inherited = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
    let_in = files.let_in(door)
    return Launch(
        command=lambda port: [*OCTAVO, *gateway_arguments(deployment, files, port), *let_in],
        environment={**inherited, "PYTHONSAFEPATH": "1"},
        host=HOST,
        port=door.port,
        poll_seconds=0.1,
        startup_seconds=STARTUP_SECONDS,
        grace_seconds=grace_seconds(deployment),
        on_line=on_line,
    )


def gateway_arguments(deployment: LLMDeployment, files: GatewayFiles, port: int) -> list[str]:
    """After `octavo`. Nobody has to notice that it drains: the processes of this machine end together."""
    arguments = ["gateway", "--host", HOST, "--port", str(port), "--endpoints-file", str(files.endpoints)]
    arguments += ["--replica-api-key-file", str(files.key_file)]
    arguments += ["--drain-delay-seconds", "0", "--drain-seconds", str(deployment.spec.termination.drain_seconds)]
    autoscaling = deployment.spec.autoscaling
    if autoscaling is not None:
        targets, zero = autoscaling.targets, autoscaling.scale_to_zero
        arguments += ["--ttft-target", str(targets.time_to_first_token_milliseconds / 1000)]
        arguments += ["--tpot-target", str(targets.time_per_output_token_milliseconds / 1000)]
        arguments += ["--hold-requests", str(zero.max_queued_requests)] if zero is not None else []
    return arguments


def _write_secrets(file: Path, secret_lines: Sequence[str]) -> None:
    file.touch(mode=0o600)
    file.write_text("".join(f"{line}\n" for line in secret_lines))
