"""Who may come in at the gateway of `octavo up`: whom each replica would let in."""

from typing import Final

from octavo_operator.local.gateway import Door
from octavo_operator.local.plan import KEY_VARIABLES, LocalPlan
from octavo_server.config import ServerConfig

LIMITS: Final = ("max_requests_per_minute", "max_tokens_per_minute", "max_concurrent_requests")


def door_of(config: ServerConfig, plan: LocalPlan, port: int) -> Door:
    """The door of the gateway: keys and limits of `spec.server.args` and of the environment."""
    environment = plan.environments[0]  # what it says of keys, it says to each replica
    exported = [environment[name] for name in sorted(KEY_VARIABLES) if environment.get(name)][:1]
    limits = [(name.replace("_", "-"), getattr(config, name)) for name in LIMITS]
    return Door(
        port=port,
        keys=tuple(dict.fromkeys([*config.api_key, *exported])),
        key_files=config.api_key_file,
        arguments=tuple(each for flag, limit in limits if limit is not None for each in (f"--{flag}", str(limit))),
    )
