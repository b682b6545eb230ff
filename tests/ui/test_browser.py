"""What people do in Prefect's UI, done by a browser in New York against what ``make ui`` starts."""

import fcntl
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from playwright.sync_api import Page, expect

import heatpipe
from heatpipe.model import Series
from heatpipe.store import Store
from tests.flows.conftest import until
from tests.flows.test_ui import answer, children, scheduled
from tests.ui.rig import Form, Run, Ui


def covered_minutes(root: Path, coin: str) -> tuple[datetime, datetime, int]:
    """Return the first and the last minute on disk, and how many there are; some of the market's have no levels."""
    store, series = Store(str(root)), Series(coin)
    covered = store.covered(series, store.days(series))
    first, end = (datetime.fromtimestamp(at, UTC) for at in covered.hull)
    return first, end - timedelta(minutes=1), covered.seconds // 60


@pytest.mark.parametrize("deployment", ["backfill", "update", "verify"])
def test_every_field_of_a_form_says_what_it_is(page: Page, ui: Ui, deployment: str) -> None:
    form = Form(page, ui, deployment)
    for name, field in ui.fields(deployment).items():
        assert field["description"]
        expect(form.field(name).get_by_role("article")).to_have_text(" ".join(field["description"].split()))
        match field["default"]:
            case bool(switched):
                expect(form.field(name).get_by_role("switch")).to_be_checked(checked=switched)
            case [*coins]:
                assert [box.input_value() for box in form.field(name).get_by_role("textbox").all()] == coins
            case default if "enum" in field:
                assert form.open_choice(name).inner_text().split() == field["enum"]
                page.keyboard.press("Escape")
                expect(form.field(name).locator(".p-select-button")).to_have_text(default)
            case default:
                kind = "spinbutton" if field["type"] == "integer" else "textbox"
                expect(form.field(name).get_by_role(kind)).to_have_value(str(default))


def test_a_form_brings_rows_and_their_picture(page: Page, ui: Ui) -> None:
    form = Form(page, ui)
    form.add_coin("kPEPE")
    form.fill(last="2h")
    run = form.submit()
    assert run.end() == "Completed"
    expect(run.heading).to_contain_text("BTC kPEPE MINUTE last 2h")
    for coin in ("BTC", "kPEPE"):
        first, last, minutes = covered_minutes(ui.root, coin)
        assert minutes == 120
        assert last - first == timedelta(minutes=119)
        assert timedelta(minutes=2) < datetime.now(UTC) - last < timedelta(minutes=10)  # counted from the run's start

    report = run.open_artifact("backfill-report")
    for coin in ("BTC", "kPEPE"):
        rows = heatpipe.scan(str(ui.root), coin=coin).select(pl.len()).collect().item()
        expect(report.get_by_role("row").filter(has_text=coin)).to_contain_text(f"{rows:,}")
    picture = report.get_by_role("img", name="liquidation heatmap")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
    expect(report).to_contain_text(f"heatpipe.connect('{ui.root}')")


def test_times_are_utc_in_a_browser_elsewhere(page: Page, ui: Ui, tmp_path: Path) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
    start, end = midnight - timedelta(minutes=90), midnight + timedelta(minutes=30)
    form = Form(page, ui)
    assert page.evaluate("new Date().getTimezoneOffset()") >= 240  # the browser is not in UTC
    form.fill(start=f"{start:%Y-%m-%dT%H:%M}", end=f"{end:%Y-%m-%dT%H:%M}", data=str(tmp_path))
    run = form.submit()
    assert run.end() == "Completed"
    assert covered_minutes(tmp_path, "BTC") == (start, end - timedelta(minutes=1), 120)
    plan = run.open_artifact("backfill-plan")
    expect(plan.get_by_role("row").filter(has_text="BTC")).to_contain_text(f"{start:%Y-%m-%d %H:%M}")


def test_a_dry_run_shows_the_plan_and_fetches_nothing(page: Page, ui: Ui, tmp_path: Path) -> None:
    form = Form(page, ui)
    form.choose("interval", "HOUR")
    form.choose("unit", "usd")
    form.field("dry_run").get_by_role("switch").click()
    form.fill(last="7d", data=str(tmp_path))
    run = form.submit()
    assert run.end() == "Completed"
    expect(page.get_by_text("nothing was fetched: a real run fetches 168 of 168 intervals").first).to_be_visible()
    expect(run.open_artifact("backfill-plan")).to_contain_text("HOUR, volumes in usd")
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_wrong_value_is_refused_in_a_sentence(page: Page, ui: Ui) -> None:
    sentence = "last '7 moons' is not a length; write 90m, 36h, 7d or 2w"
    form = Form(page, ui)
    form.fill(last="7 moons")
    run = form.submit()
    assert run.end() == "Failed"
    expect(page.get_by_text(sentence).first).to_be_visible()  # in the log
    until(lambda: len(children(ui.process)) == 2, "its process has ended, and said all it has to say")
    page.reload()
    expect(page.get_by_text(sentence).first).to_be_visible()
    expect(page.get_by_text(re.compile("Traceback|NoneType"))).to_have_count(0)
    run.tab("Details")
    expect(page.get_by_text(sentence).first).to_be_visible()
    expect(run.heading).not_to_contain_text("Task run")  # nothing was begun


def test_a_run_is_cancelled_from_its_page(page: Page, ui: Ui, tmp_path: Path) -> None:
    """It would take minutes."""
    form = Form(page, ui)
    form.add_coin("ETH")
    form.fill(last="90d", data=str(tmp_path))
    run = form.submit()
    run.wait("Running")
    until(lambda: list(tmp_path.rglob("*.parquet")), "rows arrive")
    cancel(run)
    assert run.end() == "Cancelled"
    assert list((tmp_path / "_tmp").iterdir()) == []
    locks = list((tmp_path / "_locks").iterdir())
    assert locks
    assert not [lock for lock in locks if is_held(lock)]
    run.tab("Task Runs")
    expect(page.get_by_text("Cancelled", exact=True)).not_to_have_count(0)


def cancel(run: Run) -> None:
    run.page.get_by_role("button", name="Cancel", exact=True).click()
    run.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()


def is_held(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_schedule_is_switched_on_and_makes_runs_of_its_coins(page: Page, ui: Ui) -> None:
    """On the page that opens by itself: the other one, Prefect's second, would forget the coins."""
    page.goto(ui.address)
    page.get_by_text("Deployments", exact=True).click()
    page.get_by_role("link", name="update", exact=True).first.click()
    switches = page.get_by_role("switch")  # the first is that of all of them together
    expect(switches).to_have_count(6)
    assert [switch.is_checked() for switch in switches.all()] == [True, *[False] * 5]
    with httpx.Client(base_url=ui.address, trust_env=False) as browser:
        shipped = schedules_of(browser, "update")
        switches.last.click()
        switched = until(lambda: [one for one in schedules_of(browser, "update") if one["active"]], "one is on")
        assert [one["parameters"] for one in switched] == [
            one["parameters"] for one in shipped if one["slug"] == switched[0]["slug"]
        ]
        runs = until(lambda: scheduled(browser, "update"), "the server makes its runs")
        assert {tuple(run["parameters"]["coins"]) for run in runs} == {tuple(switched[0]["parameters"]["coins"])}
        page.reload()
        expect(switches).to_have_count(6)
        [on] = [switch for switch in switches.all()[1:] if switch.is_checked()]
        on.click()
        until(lambda: not scheduled(browser, "update"), "they are gone")


def schedules_of(browser: httpx.Client, name: str) -> list[dict[str, Any]]:
    return list(answer(browser.get(f"/api/deployments/name/{name}/{name}"))["schedules"])
