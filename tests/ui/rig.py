"""What ``make ui`` starts, a Chromium in front of it, and the pages as the tests speak of them."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.flows.conftest import REPOSITORY, program, until

START_S: Final = 120
CLICK_MS: Final = 30_000
"""How long the page may take to show what it should; two loaded cores are slow."""
RUN_MS: Final = 90_000
FLAGS: Final = (
    "--no-sandbox",  # which root must not use
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # it would ask for its maker's servers at every start
    "--disable-component-update",
    "--disable-sync",
)
ENDED: Final = re.compile("^(Completed|Failed|Crashed|Cancelled)$")


def find_chromium() -> str | None:
    """Return the path of the system's Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Start Chromium without a window."""
    expect.set_options(timeout=CLICK_MS)  # what everything else has by default
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Ui:
    """What ``make ui`` has started."""

    address: str
    root: Path
    log: Path
    process: int

    def fields(self, deployment: str) -> dict[str, dict[str, Any]]:
        """Return the fields of a deployment's form, as the server knows them."""
        found = httpx.get(f"{self.address}/api/deployments/name/{deployment}/{deployment}", trust_env=False).json()
        fields: dict[str, dict[str, Any]] = found["parameter_openapi_schema"]["properties"]
        return fields


@contextmanager
def run_ui(folder: Path) -> Iterator[Ui]:
    """Run what ``make ui`` runs, in a folder of its own."""
    log, checkout = folder / "log", folder / "checkout"
    checkout.mkdir()
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",  # a switched schedule is seen after a minute otherwise
    }
    with program(log, "flows.ui", environment=environment, cwd=checkout) as process:
        until(lambda: process.poll() is not None or "Ctrl-C ends" in log.read_text(), "make ui is up", START_S)
        found = re.search(r"http://127\.0\.0\.1:[0-9]+", log.read_text())
        assert found is not None, log.read_text()
        yield Ui(found[0], checkout / "data" / "ui", log, process.pid)


class Form:
    """The form "Custom run" of a deployment.

    Its labels name no control, so a control is found by the box that holds both.
    """

    def __init__(self, page: Page, ui: Ui, deployment: str = "backfill") -> None:
        self.page, self.address = page, ui.address
        page.goto(f"{ui.address}/deployments")
        page.get_by_role("link", name=deployment, exact=True).first.click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        page.get_by_text("Validate parameters").wait_for()

    def field(self, name: str) -> Locator:
        """Return the box of a field: its name, description and control."""
        label = self.page.get_by_text(f"{name} (Optional)", exact=True)
        return self.page.locator(".schema-form-property", has=label)

    def fill(self, **texts: str) -> None:
        """Type into fields."""
        for name, text in texts.items():
            self.field(name).get_by_role("textbox").fill(text)

    def add_coin(self, coin: str) -> None:
        """Type one more coin into the list."""
        coins = self.field("coins").get_by_role("textbox")
        there = coins.count()
        self.field("coins").get_by_role("button", name="Add item").click()
        coins.nth(there).fill(coin)

    def open_choice(self, name: str) -> Locator:
        """Open a drop-down; a click on its text opens and closes it at once, so click on its arrow."""
        self.field(name).locator(".p-select-button__icon").click()
        options = self.page.locator(".p-select-options")
        options.wait_for()
        return options

    def choose(self, name: str, choice: str) -> None:
        """Choose from a drop-down."""
        self.open_choice(name).get_by_text(choice, exact=True).click()
        expect(self.field(name).locator(".p-select-button")).to_have_text(choice)

    def submit(self) -> "Run":
        """Start the run, and go to its page; the page's own button for that is there twice, and lost on some clicks."""
        created = until(self._try_to_submit, "the server takes the form")
        self.page.goto(f"{self.address}/runs/flow-run/{created['id']}")
        return Run(self.page)

    def _try_to_submit(self) -> Any:
        with self.page.expect_response(re.compile("/create_flow_run$")) as created:
            self.page.get_by_role("button", name="Submit").click()
        # SQLite has no room for two writers at once now and then; whoever has clicked then clicks again.
        return None if created.value.status == 503 else created.value.json()


@dataclass(frozen=True)
class Run:
    """The page of a run."""

    page: Page

    @property
    def heading(self) -> Locator:
        return self.page.get_by_role("banner")

    def wait(self, state: str) -> None:
        """Wait until the page shows the run in a state."""
        self.heading.get_by_text(state, exact=True).wait_for(timeout=RUN_MS)

    def end(self) -> str:
        """Wait until the page shows that the run has ended; return how."""
        ended = self.heading.get_by_text(ENDED)
        ended.wait_for(timeout=RUN_MS)
        state: str = ended.inner_text()
        return state

    def tab(self, name: str) -> None:
        """Turn to another tab."""
        self.page.get_by_role("tablist").get_by_text(name, exact=True).click()

    def open_artifact(self, key: str) -> Locator:
        """Go to the page of an artifact; return its text."""
        self.tab("Artifacts")
        self.page.get_by_role("link", name=key).click()
        self.page.wait_for_url("**/artifacts/artifact/*")
        return self.page.locator("article").last
