"""One ``make ui`` and one browser for the tests of this folder; they run only when asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:  # a plain run of pytest reads this file too, and has no Playwright
    from playwright.sync_api import Browser, Page

    from tests.ui.rig import Ui


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless the command line names it."""
    here = Path(__file__).parent
    named = [config.invocation_params.dir / argument.split("::")[0] for argument in config.args]
    return None if any(here in (path, *path.parents) for path in named) else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what the browser showed."""
    report = yield
    given: Mapping[str, Any] = item.funcargs
    if report.when == "call" and report.failed and "page" in given:
        page, picture = given["page"], given["tmp_path"] / "page.png"
        page.screenshot(path=picture, full_page=True)
        said = given["ui"].log.read_text()[-3000:]
        text = f"{page.url}\n{picture}\n\n{page.locator('body').inner_text()}\n\n{said}"
        report.sections.append(("the page, and what make ui said", text))
    return report


@pytest.fixture(scope="session")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    from tests.ui.rig import run_ui

    with run_ui(tmp_path_factory.mktemp("ui")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from tests.ui.rig import run_browser

    with run_browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of a browser five hours behind, which may talk to this machine only."""
    context = browser.new_context(
        timezone_id="America/New_York", locale="en-US", viewport={"width": 1280, "height": 1000}
    )
    asked: set[str | None] = set()
    context.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    yield context.new_page()  # a picture of it goes to tmp_path when the test fails
    context.close()
    assert asked - {None} == {"127.0.0.1"}  # without a host: what an address itself holds, such as the picture
