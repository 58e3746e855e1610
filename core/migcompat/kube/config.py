"""Where the API server is, and who we are to it."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ConfigError(Exception):
    """The connection settings are missing or unusable; the message says which and where."""


class Connection(msgspec.Struct, frozen=True):
    """How to reach the API server. At most one of ``token`` and ``token_file`` is set."""

    server: str
    tls: ssl.SSLContext | None = None
    tls_server_name: str = ""
    token: str = ""
    token_file: Path | None = None

    def bearer(self) -> str:
        """The token of this moment: a projected token is renewed in its file long before it expires."""
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text().strip()
        except OSError as problem:
            raise ConfigError(f"cannot read the API token {self.token_file}: {problem.strerror}") from problem


def connection(kubeconfig: str | None = None, environ: Mapping[str, str] = os.environ) -> Connection:
    """From *kubeconfig*, else ``$KUBECONFIG``, else the pod's service account. Raises ConfigError."""
    path = kubeconfig or environ.get("KUBECONFIG", "")
    if path:
        return from_kubeconfig(Path(path))
    return in_cluster(environ)


def in_cluster(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Connection:
    """The service account that Kubernetes mounts into every pod ("Accessing the API from a Pod")."""
    server = in_cluster_server(environ)
    try:
        tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except (OSError, ssl.SSLError) as problem:
        raise ConfigError(f"cannot use the cluster's CA {account / 'ca.crt'}: {problem}") from problem
    found = Connection(server, tls, token_file=account / "token")
    found.bearer()
    return found


def in_cluster_server(environ: Mapping[str, str] = os.environ) -> str:
    """The URL that Kubernetes tells every pod; it needs no DNS. Raises ConfigError."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(
            "no API server: give --kubeconfig or $KUBECONFIG, or run in a pod with a service account"
        )
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{port}"


def from_kubeconfig(path: Path) -> Connection:
    """The current context of the kubeconfig file *path* (certificates or token, inline or in files)."""
    parsed = _parsed(path)
    context = _context(parsed, path)
    cluster = _named(parsed, "clusters", "cluster", str(context.get("cluster") or ""), path)
    user = _named(parsed, "users", "user", str(context["user"]), path) if context.get("user") else {}
    server = str(cluster.get("server") or "")
    if not server.startswith(("https://", "http://")):
        raise ConfigError(f"kubeconfig {path}: the cluster's server {server!r} is not an http(s) URL")
    for unsupported in ("exec", "auth-provider", "username"):
        if user.get(unsupported):
            raise ConfigError(
                f"kubeconfig {path}: users with {unsupported!r} are not supported; use token or certificate"
            )
    token_file = user.get("tokenFile")
    return Connection(
        server.rstrip("/"),
        _tls(cluster, user, path) if server.startswith("https://") else None,
        tls_server_name=str(cluster.get("tls-server-name") or ""),
        token="" if token_file else str(user.get("token") or ""),
        token_file=path.parent / token_file if token_file else None,
    )


def context_namespace(path: Path) -> str:
    """The namespace of the current context of the kubeconfig file *path*; empty: none. Raises ConfigError."""
    return str(_context(_parsed(path), path).get("namespace") or "")


def _parsed(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - in a pod there is no kubeconfig, and no need for its memory

    try:
        parsed = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, yaml.YAMLError) as problem:
        raise ConfigError(f"cannot read kubeconfig {path}: {problem}") from problem
    if not isinstance(parsed, dict):
        raise ConfigError(f"kubeconfig {path} is not a mapping")
    return parsed


def _context(parsed: dict[str, Any], path: Path) -> dict[str, Any]:
    return _named(parsed, "contexts", "context", str(parsed.get("current-context") or ""), path)


def _named(parsed: dict[str, Any], plural: str, singular: str, name: str, path: Path) -> dict[str, Any]:
    for element in parsed.get(plural) or ():
        if isinstance(element, dict) and element.get("name") == name:
            found = element.get(singular)
            return found if isinstance(found, dict) else {}
    raise ConfigError(f"kubeconfig {path}: no {singular} named {name!r}")


def _tls(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> ssl.SSLContext:
    try:
        authority = _bytes(cluster, "certificate-authority", path)
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = _bytes(user, "client-certificate", path), _bytes(user, "client-key", path)
        if certificate and key:
            # The ssl module loads certificates from files only: this one is ours alone and soon gone.
            with tempfile.NamedTemporaryFile(prefix="migcompat-") as joined:
                joined.write(certificate + b"\n" + key)
                joined.flush()
                context.load_cert_chain(joined.name)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"kubeconfig {path}: cannot use its certificates: {problem}") from problem
    return context


def _bytes(section: dict[str, Any], key: str, path: Path) -> bytes:
    inline, file = section.get(f"{key}-data"), section.get(key)
    if inline:
        return base64.b64decode(inline, validate=True)
    return (path.parent / file).read_bytes() if file else b""
