"""Runs the tests of ``guest/`` in a booted machine; each shows up as if it had run here.

docs/testing-kernel.md says how.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel import image
from tests.kernel.figures import Figures
from tests.kernel.run import GuestError, GuestRun
from tests.support.longrun import LongRunError

GUEST = Path(__file__).parent / "guest"

_FIGURES = pytest.StashKey[Figures]()
_IMAGE = pytest.StashKey["image.Image | str"]()
_RUN = pytest.StashKey["GuestRun | str"]()


def _in_guest(item: pytest.Item) -> bool:
    return item.path.is_relative_to(GUEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A guest's test has its time limit in the machine, and the machine has one (`run.DEADLINE`)."""
    for item in filter(_in_guest, items):
        item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the image before the first test that needs it: no test's time limit runs meanwhile."""
    config = session.config
    needed = any(_in_guest(item) or "made" in getattr(item, "fixturenames", ()) for item in session.items)
    if not needed or config.option.collectonly:
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        try:
            config.stash[_IMAGE] = image.image()
        except image.ImageError as error:
            config.stash[_IMAGE] = str(error)


@pytest.fixture(scope="session")
def made(pytestconfig: pytest.Config) -> image.Image:
    """The machine's image; where it cannot be had, tests fail and say why."""
    found = pytestconfig.stash[_IMAGE]
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """A guest's test is not run here: its reports are taken from the machine."""
    if not _in_guest(item):
        return None
    config = item.config
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        config.stash.setdefault(_FIGURES, Figures()).take(report.user_properties)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> list[pytest.TestReport]:
    run = _run(item.session)
    if isinstance(run, str):
        return [_failed(item, run)]
    try:
        found = run.reports(item.nodeid)
    except GuestError as error:
        item.config.stash[_RUN] = f"not run: {str(error).splitlines()[0]} (see the first failure)"
        run.close()
        return [_failed(item, str(error))]
    load = item.config.hook.pytest_report_from_serializable
    return [load(config=item.config, data=data) for data in found]


def _failed(item: pytest.Item, why: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")


def _run(session: pytest.Session) -> GuestRun | str:
    """The machine, switched on for the first test that needs it; or why there is none."""
    stash = session.config.stash
    if _RUN not in stash:
        made = stash[_IMAGE]
        if isinstance(made, str):
            stash[_RUN] = made
        else:
            try:
                stash[_RUN] = GuestRun(made, [item.nodeid for item in session.items if _in_guest(item)])
            except LongRunError as error:
                stash[_RUN] = str(error)
    return stash[_RUN]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Takes the machine's own figures and ends it."""
    stash = session.config.stash
    run = stash.get(_RUN, "")
    if isinstance(run, str):
        return
    made = stash[_IMAGE]
    assert isinstance(made, image.Image)
    figures = stash.setdefault(_FIGURES, Figures())
    figures.add("set-up of the image when it was built", made.seconds, "s")
    figures.add("boot until its first test is loaded", run.boot_seconds, "s")
    run.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures, at the end."""
    figures = config.stash.get(_FIGURES, None)
    if figures is not None:
        figures.show(terminalreporter)
