"""What a run shows in Prefect's UI: its plan, where it stands, an account at the end. Writes artifacts only."""

import base64
import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from heatpipe.config import Settings, Target
from heatpipe.errors import HeatpipeError
from heatpipe.heatmap import build_heatmap, paint
from heatpipe.model import Series, Span, show_time
from heatpipe.plan import Plan, SlabPlan, estimate
from heatpipe.progress import show_bytes, show_seconds
from heatpipe.report import Failure, Report
from heatpipe.status import take_stock
from heatpipe.store import Store
from heatpipe.verify import Findings

PICTURE_POINTS: Final = 7 * 1440
"""Newest points that the picture shows: a week of minutes takes two seconds of CPU, most of them for the paint."""
PICTURE_DPI: Final = 80
"""With WebP, 120 kB where PNG takes 440: the picture travels inside the artifact."""
MOST_LINES: Final = 100
"""Failures and problems that are listed; the others are counted."""


@contextlib.contextmanager
def _server_may_be_away() -> Iterator[None]:
    """Go on without an artifact that the server did not take: what a run shows is not what it does."""
    with contextlib.suppress(httpx.HTTPError):
        yield


def show_plan(flow: str, plan: Plan, settings: Settings, free_bytes: int) -> None:
    """Show what a run will ask for and what that costs."""
    expected = estimate(plan)
    seconds = plan.seconds(settings.weight_per_minute, settings.burst)
    budget = f"{settings.weight_per_minute:,} a minute, {settings.burst:,} at once"
    price = f"weight {plan.weight:,} in {plan.requests:,} requests, at least {show_seconds(seconds)} at the budget"
    sizes = f"{show_bytes(expected.wire_bytes)} to download, {show_bytes(expected.disk_bytes)} on disk"
    lines = [
        f"# Plan of {flow}",
        "",
        f"{_describe(plan.slabs[0].slab.series)}, into `{settings.root}`." if plan.slabs else "Nothing to do.",
        "",
        *_table(
            ("coin", "from (UTC)", "to", "intervals", "to fetch", "slabs", "requests", "weight"),
            [_plan_line(series, slabs) for series, slabs in _by_series(plan).items()],
        ),
        "",
        f"* {price} ({budget})",
        f"* about {expected.rows:,} rows, {sizes}, where {show_bytes(free_bytes)} are free",
        *([f"* {plan.open:,} intervals are not closed yet, and left out"] if plan.open else []),
        *(f"* {warning}" for warning in plan.warnings),
    ]
    with _server_may_be_away():
        create_markdown_artifact("\n".join(lines), key=f"{flow}-plan", description=f"what this {flow} asks for")


def _plan_line(series: Series, slabs: Sequence[SlabPlan]) -> tuple[str, ...]:
    span = _span_of(slabs)
    numbers = (
        sum(slab.span.seconds for slab in slabs) // series.interval_s,
        sum(slab.missing_s for slab in slabs) // series.interval_s,
        sum(bool(slab.requests) for slab in slabs),
        sum(slab.requests for slab in slabs),
        sum(slab.weight for slab in slabs),
    )
    return series.coin, _minute(span.start), _minute(span.end), *(f"{number:,}" for number in numbers)


class Gauge:
    """A progress artifact that stays with its run.

    Parameters
    ----------
    key : str
        The artifact's.
    """

    def __init__(self, key: str) -> None:
        self._artifact: UUID | None = None
        with _server_may_be_away():
            self._artifact = cast("UUID", create_progress_artifact(0.0, key=key, description="begins"))

    def show(self, share: float, text: str) -> None:
        """Show a share from 0 to 1, and where the run stands in words."""
        if self._artifact is not None:
            with _server_may_be_away():
                update_progress_artifact(self._artifact, round(100 * share, 1), text)


def show_report(
    flow: str,
    plan: Plan,
    reports: Mapping[Series, Report],
    failures: Sequence[Failure],
    settings: Settings,
    seconds: float,
) -> None:
    """Show what a run has brought: a line per series, what failed, the picture, the query to try.

    Parameters
    ----------
    flow : str
        Name of the flow.
    plan : Plan
        What was to be done.
    reports : mapping
        What was done, by series.
    failures : sequence of Failure
        What did not come.
    settings : Settings
        Where the dataset is.
    seconds : float
        How long it took.
    """
    spans = {series: _span_of(slabs) for series, slabs in _by_series(plan).items()}
    gaps = _count_gaps(spans, settings)
    counts = ("unchanged", "changed", "appeared", "vanished") if flow == "update" else ()
    all_series = list(spans)
    lines = [_report_line(series, reports.get(series, Report()), gaps[series], counts) for series in all_series]
    titles = ("coin", "rows", "days", "bytes", "weight", *counts, "gaps", "failed windows")
    pictured = max(reports, key=lambda series: reports[series].rows, default=None)
    text = [
        f"# {flow}",
        "",
        f"{_describe(all_series[0])}, in {show_seconds(seconds)}, into `{settings.root}`.",
        "Gaps are closed intervals of the span without a snapshot on disk.",
        "",
        *_table(titles, lines),
        "",
        *_name_absent(reports.values()),
        *_list_failures(failures),
        *([] if pictured is None else _picture(pictured, spans[pictured], settings.root)),
        *_queries(settings.root, all_series[0] if pictured is None else pictured),
    ]
    with _server_may_be_away():
        create_markdown_artifact("\n".join(text), key=f"{flow}-report", description=f"what this {flow} has brought")


def _report_line(series: Series, report: Report, gaps: int, counts: Sequence[str]) -> tuple[str, ...]:
    failed = sum(failure.counts and failure.span is not None for failure in report.failures)
    numbers = [report.weight, *(getattr(report, count) for count in counts), gaps, failed]
    return (
        series.coin,
        f"{report.rows:,}",
        f"{report.days:,}",
        show_bytes(report.bytes_written).replace(" ", "\N{NO-BREAK SPACE}"),
        *(f"{number:,}" for number in numbers),
    )


def _count_gaps(spans: Mapping[Series, Span], settings: Settings) -> dict[Series, int]:
    targets = [Target(series, *span) for series, span in spans.items()]
    tallies = take_stock(Store(settings.root), targets, settings, time.time(), capped=False)
    return {tally.series: tally.absent + tally.failed + tally.missing for tally in tallies}


def _name_absent(reports: Iterable[Report]) -> list[str]:
    absent = sum(report.absent for report in reports)
    if not absent:
        return []
    return [
        f"{absent:,} intervals were recorded as absent: the API has no point there; `refetch_absent` asks again.",
        "",
    ]


def _list_failures(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    more = len(failures) - MOST_LINES
    listed = [f"* {failure.reason}" for failure in failures[:MOST_LINES]]
    return ["## What did not come", "", *listed, *([f"* and {more:,} more"] if more > 0 else []), ""]


def _picture(series: Series, span: Span, root: str) -> list[str]:
    """Draw the newest part of a span into the text itself; say why where there is none."""
    newest = Span(max(span.start, span.end - PICTURE_POINTS * series.interval_s), span.end)
    title = f"## {series.coin}, {_minute(newest.start)} to {_minute(newest.end)} UTC"
    try:
        figure = paint(build_heatmap(root, series, newest))
    except HeatpipeError as exc:  # matplotlib is an extra
        return [title, "", f"No picture: {exc}.", ""]
    picture = io.BytesIO()
    figure.savefig(picture, format="webp", dpi=PICTURE_DPI, pil_kwargs={"quality": 80})
    data = base64.b64encode(picture.getvalue()).decode()
    return [title, "", f"![liquidation heatmap of {series.coin}](data:image/webp;base64,{data})", ""]


def _queries(root: str, series: Series) -> list[str]:
    chosen = f"coin={series.coin!r}, interval={series.interval!r}, unit={series.unit!r}, depth={series.depth}"
    where = f"coin = {_quote(series.coin)} AND interval = '{series.interval}' AND unit = '{series.unit}'"
    return [
        "## The query to try",
        "",
        "With polars, the ten largest levels of the newest snapshot:",
        "",
        "```python",
        "import heatpipe",
        "import polars as pl",
        "",
        "rows = heatpipe.scan(",
        f"    {root!r},",
        f"    {chosen},",
        ")",
        'newest = rows.filter(pl.col("timestamp") == pl.col("timestamp").max())',
        'levels = newest.select("timestamp", "price", "volume")',
        'print(levels.top_k(10, by="volume").collect())',
        "```",
        "",
        "With DuckDB, snapshots and rows by day:",
        "",
        "```python",
        "import heatpipe",
        "",
        f"con = heatpipe.connect({root!r})",
        'con.sql("""',
        "    SELECT date, count(DISTINCT timestamp) AS snapshots, count(*) AS rows",
        "    FROM liquidations",
        f"    WHERE {where} AND depth = {series.depth}",
        "    GROUP BY date ORDER BY date",
        '""").show()',
        "```",
    ]


def _quote(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def show_findings(findings: Findings, root: str) -> None:
    """Show what was verified, and each problem."""
    read = f"{findings.files:,} files, {findings.rows:,} sound rows, {show_bytes(findings.size_bytes)} in `{root}`"
    lines = ["# verify", "", f"{read}; problems: {len(findings.problems):,}", ""]
    if findings.problems:
        more = len(findings.problems) - MOST_LINES
        listed = [(f"`{problem.path}`", problem.cause) for problem in findings.problems[:MOST_LINES]]
        lines += [*_table(("path", "cause"), listed), *(["", f"and {more:,} more"] if more > 0 else []), ""]
    if not all(problem.unreadable for problem in findings.problems):
        lines += ["A damaged day is fetched anew by a backfill with `refetch`; what does not belong there, move away."]
    if any(problem.unreadable for problem in findings.problems):
        lines += ["What cannot be read now may be sound: see to the cause, and verify again."]
    with _server_may_be_away():
        create_markdown_artifact("\n".join(lines), key="verify-report", description="what was verified")


def _by_series(plan: Plan) -> dict[Series, list[SlabPlan]]:
    found: dict[Series, list[SlabPlan]] = {}
    for slab in plan.slabs:
        found.setdefault(slab.slab.series, []).append(slab)
    return found


def _span_of(slabs: Iterable[SlabPlan]) -> Span:
    spans = [slab.span for slab in slabs]
    return Span(min(span.start for span in spans), max(span.end for span in spans))


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in titles[1:])]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (titles, rule, *lines)]


def _describe(series: Series) -> str:
    """Name what all series of a run have in common."""
    return f"{series.interval}, volumes in {series.unit}, depth {series.depth:,}"


def _minute(time_s: int) -> str:
    return show_time(time_s)[:16].replace("T", " ")
