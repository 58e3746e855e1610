"""The operator before it has listed anything."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_ends_when_told_while_there_is_no_api_server(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(f"""
current-context: c
contexts: [{{name: c, context: {{cluster: c}}}}]
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{nobody_listens.getsockname()[1]}"}}}}]
""")
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("migcompat-operator"),
                    f"--kubeconfig={kubeconfig}",
                    "--health-bind=127.0.0.1:0",
                ],
                stderr=output,
            )
        try:
            deadline = time.monotonic() + 60
            while "trying again" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            process.terminate()
            assert process.wait(20) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--certificates=migcompat"], "--certificates needs --namespace"),
        (
            ["--ca-validity=300", "--ca-overlap=100"],
            "--ca-overlap must be less than a third of --ca-validity",
        ),
        (["--server-validity=9"], "--server-validity"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: list[str], words: str) -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("migcompat-operator"), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "400", "TERM": "dumb", "PATH": "/usr/bin"},
    )
    assert ended.returncode == 2
    assert words in ended.stderr
