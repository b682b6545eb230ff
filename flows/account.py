"""What a run shows in Prefect's UI: its plan, where it stands, an account at the end. Writes artifacts only."""

import base64
import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows.markdown import code, escape, table
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


SAID_MOST: Final = 300
"""Characters that a foreign error may say."""


@contextlib.contextmanager
def _only_shown(what: str) -> Iterator[None]:
    """Go on without what cannot be made, or the server does not take: what a run shows is not what it does."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - whatever it is, the rows are on disk
        _warn(f"{what} cannot be shown: {_describe_fault(exc)}")


def _warn(line: str) -> None:
    with contextlib.suppress(Exception):  # nobody listens
        get_run_logger().warning("%s", line)


def _describe_fault(exc: Exception) -> str:
    text = " ".join(str(exc).split())[:SAID_MOST]
    return text if isinstance(exc, HeatpipeError) else f"{type(exc).__name__}{': ' if text else ''}{text}"


def show_plan(flow: str, plan: Plan, settings: Settings, free_bytes: int) -> None:
    """Show what a run will ask for and what that costs."""
    with _only_shown("the plan"):
        text = _tell_plan(flow, plan, settings, free_bytes)
        create_markdown_artifact(text, key=f"{flow}-plan", description=f"what this {flow} asks for")


def _tell_plan(flow: str, plan: Plan, settings: Settings, free_bytes: int) -> str:
    expected = estimate(plan)
    seconds = plan.seconds(settings.weight_per_minute, settings.burst)
    budget = f"{settings.weight_per_minute:,} a minute, {settings.burst:,} at once"
    price = f"weight {plan.weight:,} in {plan.requests:,} requests, at least {show_seconds(seconds)} at the budget"
    sizes = f"{show_bytes(expected.wire_bytes)} to download, {show_bytes(expected.disk_bytes)} on disk"
    lines = [
        f"# Plan of {flow}",
        "",
        f"{_describe(plan.slabs[0].slab.series)}, into {code(settings.root)}." if plan.slabs else "Nothing to do.",
        "",
        *table(
            ("coin", "from (UTC)", "to", "intervals", "to fetch", "slabs", "requests", "weight"),
            [_plan_line(series, slabs) for series, slabs in _by_series(plan).items()],
        ),
        "",
        f"* {price} ({budget})",
        f"* about {expected.rows:,} rows, {sizes}, where {show_bytes(free_bytes)} are free",
        *([f"* {plan.open:,} intervals are not closed yet, and left out"] if plan.open else []),
        *(f"* {escape(warning)}" for warning in plan.warnings),
    ]
    return "\n".join(lines)


def _plan_line(series: Series, slabs: Sequence[SlabPlan]) -> tuple[str, ...]:
    span = _span_of(slabs)
    numbers = (
        sum(slab.span.seconds for slab in slabs) // series.interval_s,
        sum(slab.missing_s for slab in slabs) // series.interval_s,
        sum(bool(slab.requests) for slab in slabs),
        sum(slab.requests for slab in slabs),
        sum(slab.weight for slab in slabs),
    )
    return escape(series.coin), _minute(span.start), _minute(span.end), *(f"{number:,}" for number in numbers)


class Gauge:
    """A progress artifact that stays with its run.

    Parameters
    ----------
    key : str
        The artifact's.
    """

    def __init__(self, key: str) -> None:
        self._artifact: UUID | None = None
        self._told = False
        with self._only_shown():
            self._artifact = cast("UUID", create_progress_artifact(0.0, key=key, description="begins"))

    def show(self, share: float, text: str) -> None:
        """Show a share from 0 to 1, and where the run stands in words."""
        if self._artifact is not None:
            with self._only_shown():
                update_progress_artifact(self._artifact, round(100 * share, 1), text)

    @contextlib.contextmanager
    def _only_shown(self) -> Iterator[None]:
        """Say once that it cannot be shown: it is tried every other second."""
        with contextlib.nullcontext() if self._told else _only_shown("the progress"):
            try:
                yield
            except Exception:
                told, self._told = self._told, True
                if not told:
                    raise


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
    with _only_shown("the report"):
        text = _tell_report(flow, plan, reports, failures, settings, seconds)
        create_markdown_artifact(text, key=f"{flow}-report", description=f"what this {flow} has brought")


def _tell_report(
    flow: str,
    plan: Plan,
    reports: Mapping[Series, Report],
    failures: Sequence[Failure],
    settings: Settings,
    seconds: float,
) -> str:
    spans = {series: _span_of(slabs) for series, slabs in _by_series(plan).items()}
    gaps = _count_gaps(spans, settings)
    counts = ("unchanged", "changed", "appeared", "vanished") if flow == "update" else ()
    all_series = list(spans)
    lines = [_report_line(series, reports.get(series, Report()), gaps[series], counts) for series in all_series]
    titles = ("coin", "rows", "days", "bytes", "weight", *counts, "gaps", "failed windows")
    pictured = max(reports, key=lambda series: reports[series].rows, default=None)
    brought = pictured is not None and reports[pictured].rows > 0
    text = [
        f"# {flow}",
        "",
        f"{_describe(all_series[0])}, in {show_seconds(seconds)}, into {code(settings.root)}.",
        "Gaps are closed intervals of the span without a snapshot on disk.",
        "",
        *table(titles, lines),
        "",
        *_name_absent(reports.values()),
        *_list_failures(failures),
        *([] if pictured is None else _picture(pictured, spans[pictured], settings.root, told=brought)),
        *_queries(settings.root, all_series[0] if pictured is None else pictured),
    ]
    return "\n".join(text)


def _report_line(series: Series, report: Report, gaps: int, counts: Sequence[str]) -> tuple[str, ...]:
    failed = sum(failure.counts and not failure.held and failure.span is not None for failure in report.failures)
    numbers = [report.weight, *(getattr(report, count) for count in counts), gaps, failed]
    return (
        escape(series.coin),
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
    held = [failure for failure in failures if failure.held]
    return [
        *_list_some("## What did not come", [failure for failure in failures if not failure.held]),
        *_list_some("## What was left to another run", held),
    ]


def _list_some(title: str, failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    more = len(failures) - MOST_LINES
    listed = [f"* {escape(failure.reason)}" for failure in failures[:MOST_LINES]]
    return [title, "", *listed, *([f"* and {more:,} more"] if more > 0 else []), ""]


def _picture(series: Series, span: Span, root: str, *, told: bool = True) -> list[str]:
    """Draw the newest part of a span into the text itself; say why where there is none, in the log, too, if `told`."""
    newest = Span(max(span.start, span.end - PICTURE_POINTS * series.interval_s), span.end)
    title = f"## {escape(series.coin)}, {_minute(newest.start)} to {_minute(newest.end)} UTC"
    picture = io.BytesIO()
    try:
        figure = paint(build_heatmap(root, series, newest))
        figure.savefig(picture, format="webp", dpi=PICTURE_DPI, pil_kwargs={"quality": 80})
    except Exception as exc:  # noqa: BLE001 - matplotlib is an extra, and may raise anything
        said = _describe_fault(exc)
        if told:
            _warn(f"no picture in the report: {said}")
        return [title, "", f"No picture: {escape(said)}.", ""]
    data = base64.b64encode(picture.getvalue()).decode()
    return [title, "", f"![liquidation heatmap of {escape(series.coin)}](data:image/webp;base64,{data})", ""]


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
    """Return a text of SQL, within a text of Python's that three quotes end."""
    doubled = text.replace("'", "''").replace("\\", r"\\").replace('"', r"\"")
    return f"'{doubled}'"


def show_findings(findings: Findings, root: str) -> None:
    """Show what was verified, and each problem."""
    with _only_shown("the report"):
        create_markdown_artifact(_tell_findings(findings, root), key="verify-report", description="what was verified")


def _tell_findings(findings: Findings, root: str) -> str:
    read = f"{findings.files:,} files, {findings.rows:,} sound rows, {show_bytes(findings.size_bytes)} in {code(root)}"
    lines = ["# verify", "", f"{read}; problems: {len(findings.problems):,}", ""]
    if findings.problems:
        more = len(findings.problems) - MOST_LINES
        listed = [(code(problem.path), escape(problem.cause)) for problem in findings.problems[:MOST_LINES]]
        lines += [*table(("path", "cause"), listed), *(["", f"and {more:,} more"] if more > 0 else []), ""]
    if not all(problem.unreadable for problem in findings.problems):
        lines += ["A damaged day is fetched anew by a backfill with `refetch`; what does not belong there, move away."]
    if any(problem.unreadable for problem in findings.problems):
        lines += ["What cannot be read now may be sound: see to the cause, and verify again."]
    return "\n".join(lines)


def _by_series(plan: Plan) -> dict[Series, list[SlabPlan]]:
    found: dict[Series, list[SlabPlan]] = {}
    for slab in plan.slabs:
        found.setdefault(slab.slab.series, []).append(slab)
    return found


def _span_of(slabs: Iterable[SlabPlan]) -> Span:
    spans = [slab.span for slab in slabs]
    return Span(min(span.start for span in spans), max(span.end for span in spans))


def _describe(series: Series) -> str:
    """Name what all series of a run have in common."""
    return f"{series.interval}, volumes in {series.unit}, depth {series.depth:,}"


def _minute(time_s: int) -> str:
    return show_time(time_s)[:16].replace("T", " ")
