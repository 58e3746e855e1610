"""Handing kopf what it needs."""

from __future__ import annotations

import kopf
import pytest
from migcompat.kube.config import ConfigError
from migcompat_operator.handlers import login


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's service account, as kopf reads it."""
    found = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t", ca_path="/ca.crt")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: found)
    monkeypatch.delenv("KUBECONFIG", raising=False)


def test_in_a_pod_kopf_goes_where_our_own_client_goes(account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = login()
    assert found is not None
    assert found.server == "https://10.96.0.1:6443", "an address, so that no DNS is needed"
    assert (found.token, found.ca_path) == ("t", "/ca.crt")


def test_outside_of_pods_without_a_kubeconfig_there_is_nowhere_to_go(
    account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="no API server"):
        login()
