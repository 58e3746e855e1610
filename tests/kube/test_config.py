"""Finding the API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from migcompat.kube.client import Client
from migcompat.kube.config import ConfigError, Connection, connection, in_cluster
from migcompat.kube.errors import Unreachable
from migcompat.kube.kinds import NODES

from tests.kube.fake_api import api, node

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: there, context: {cluster: c2, user: u}}
- {name: here, context: {cluster: c, user: u}}
clusters:
- {name: c, cluster: {server: "http://127.0.0.1:8001/"}}
- {name: c2, cluster: {server: "ftp://127.0.0.1"}}
users:
- {name: u, user: {token: secret}}
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    return path


def test_the_current_context_is_used(kubeconfig: Path) -> None:
    found = connection(str(kubeconfig), {})
    assert (found.server, found.bearer(), found.tls) == ("http://127.0.0.1:8001", "secret", None)


def test_the_environment_names_the_file_when_no_option_does(kubeconfig: Path) -> None:
    assert connection(None, {"KUBECONFIG": str(kubeconfig)}).server == "http://127.0.0.1:8001"


def test_a_token_file_lies_beside_the_kubeconfig(kubeconfig: Path) -> None:
    kubeconfig.write_text(KUBECONFIG.replace("token: secret", "token: old, tokenFile: t"))
    (kubeconfig.parent / "t").write_text("fresh\n")
    assert connection(str(kubeconfig), {}).bearer() == "fresh"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("current-context: here", "current-context: nowhere", "no context named 'nowhere'"),
        ("name: c,", "name: gone,", "no cluster named 'c'"),
        ("name: u,", "name: gone,", "no user named 'u'"),
        ("current-context: here", "current-context: there", "'ftp://127.0.0.1' is not an http"),
        ("token: secret", "exec: {command: x}", "'exec' are not supported"),
        ("http:", "https:", ""),
        ("kind: Config", "kind: [", "cannot read kubeconfig"),
        (KUBECONFIG, "just text", "is not a mapping"),
    ],
)
def test_what_is_wrong_is_said(kubeconfig: Path, old: str, new: str, says: str) -> None:
    text = KUBECONFIG.replace(old, new)
    if not says:
        says = "cannot use its certificates"
        text = text.replace("server:", "certificate-authority-data: AAAA, server:")
    kubeconfig.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        connection(str(kubeconfig), {})
    assert str(kubeconfig) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: .*No such file"):
        connection(str(tmp_path / "none"), {})


def test_outside_a_cluster_it_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="give --kubeconfig"):
        connection(None, {})


def test_a_service_account_without_a_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CA .*ca\.crt"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


async def test_a_token_is_read_again_as_it_rotates(tmp_path: Path) -> None:
    sent = []

    async def handler(request: web.Request) -> web.Response:
        sent.append(request.headers["Authorization"])
        return web.json_response(node("n"))

    token = tmp_path / "token"
    async with api(handler) as plain:
        server = plain._connection.server
        async with Client(Connection(server, token_file=token)) as client:
            for text in ("one", "two\n"):
                token.write_text(text)
                await client.get(NODES, "n")
            token.unlink()
            with pytest.raises(Unreachable, match="cannot read the API token"):
                await client.get(NODES, "n")
    assert sent == ["Bearer one", "Bearer two"]
