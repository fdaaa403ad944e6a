"""A server that others reach and that asks for nothing says so when it starts."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

import serving
from octavo_server.config import ServerConfig
from octavo_server.frontend.listening import is_exposed, listen


@pytest.mark.parametrize(
    ("host", "config", "exposed"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("::1", {}, False),
        ("0.0.0.0", {"admin_port": 0}, True),
        ("127.0.0.1", {"admin_port": 0, "admin_host": "0.0.0.0"}, False),  # which is for those who operate it
        ("0.0.0.0", {"api_key": ("k",)}, False),
        ("0.0.0.0", {"api_key_file": ("keys",)}, False),
        ("0.0.0.0", {"gateway_api_key_file": "keys"}, True),  # by which nobody else is kept out
        ("0.0.0.0", {"ssl_certfile": "c"}, True),
        ("0.0.0.0", {"ssl_certfile": "c", "ssl_ca_certs": "ca"}, False),
        ("0.0.0.0", {"ssl_certfile": "c", "ssl_ca_certs": "ca", "ssl_cert_reqs": 1}, True),
    ],
)
def test_who_listens_to_all_and_asks_for_nothing_is_exposed(host: str, config: dict[str, Any], exposed: bool) -> None:
    given = ServerConfig(model=Path(), host=host, port=0, **config)
    with contextlib.ExitStack() as sockets:
        assert is_exposed(given, listen(given, None, sockets)[0].socket) is exposed


def test_the_log_says_so_before_anybody_came(tmp_path: Path) -> None:
    with serving.serve(serving.text_model(tmp_path), host="0.0.0.0") as server:
        assert f"WARNING octavo_server.frontend.server: whoever reaches {server.url} may use it: give" in server.log
