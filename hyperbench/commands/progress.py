"""Progress of a run: a bar with the time left on a terminal, a line per result elsewhere, or nothing."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hyperbench.config.tasks import LAYERS, metrics_of
from hyperbench.stats.samples import median
from hyperbench.store.schema import ErrorRow, Record, Timing

#: Space that a bar leaves for the bar itself, the percentage and two times.
_BAR_CHARS = 44
_LABEL_CHARS = (16, 60)


class Quiet:
    """A listener that shows nothing; for --json."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def start(self, total_s: float) -> None:
        """Begin; the run is likely to take this long."""

    def begin(self, label: str) -> None:
        """A new piece of work begins."""

    def finished(self, cost_s: float) -> None:
        """A part of this estimated cost is done."""

    def row(self, record: Record) -> None:
        """A record has been written."""


class Lines(Quiet):
    """A plain line for every timing and stage; for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, total_s: float) -> None:
        """Say how long the run is likely to take."""
        self._console.print(f"estimated time: {duration(total_s)}", highlight=False)

    def row(self, record: Record) -> None:
        """Print a time, or the first score of an example."""
        if isinstance(record, Timing):
            self._console.print(describe(record), highlight=False, soft_wrap=True, markup=False)
        elif record.point.is_task and record.metric == metrics_of(record.point)[0]:
            self._console.print(describe_score(record), highlight=False, soft_wrap=True, markup=False)


class Bar(Quiet):
    """A progress bar with the time left and the current point; failures are printed above it.

    It is drawn when something happens and at no other time: a thread that draws would disturb what is being timed.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=10), TaskProgressColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
            console=console, auto_refresh=False,
        )  # fmt: skip
        narrowest, widest = _LABEL_CHARS
        self._label_chars = max(narrowest, min(widest, console.width - _BAR_CHARS))
        self._task = self._progress.add_task("starting", start=False, visible=False)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def start(self, total_s: float) -> None:
        """Make a bar as long as the run is likely to take."""
        self._progress.start_task(self._task)
        self._progress.update(self._task, total=total_s, visible=True, refresh=True)

    def begin(self, label: str) -> None:
        """Name the work that begins."""
        self._progress.update(self._task, description=label[: self._label_chars], refresh=True)

    def finished(self, cost_s: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=cost_s, refresh=True)

    def row(self, record: Record) -> None:
        """Print a time that could not be taken."""
        if isinstance(record, Timing) and not record.status.has_timing:
            self._progress.console.print(describe(record), highlight=False, markup=False)


def listener(console: Console, *, quiet: bool) -> Quiet:
    """The listener that fits the console: a bar on a terminal, lines elsewhere, nothing if `quiet`."""
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal else Lines(console)


def describe(timing: Timing) -> str:
    """A timing in one line: point, pass or stage, and the median or what went wrong."""
    point = timing.point
    masking = "causal" if point.is_causal else "non-causal"
    what = f"stage {timing.stage}" if timing.stage else timing.pass_
    head = f"{point.method} {point.input} n={point.seq_len:,} heads={point.heads} {masking} {what}"
    if not timing.status.has_timing:
        return f"{head}: {timing.status}: {timing.message}"
    note = "; ".join(filter(None, (timing.message, ", ".join(timing.flags))))
    told = f" ({note})" if note else ""
    return f"{head}: {median(timing.samples_ms):.4g} ms, {len(timing.samples_ms)} samples{told}"


def describe_score(row: ErrorRow) -> str:
    """A score of an example in one line."""
    point, layers = row.point, row.point.hyper.get(LAYERS)
    head = (
        f"{point.method}{f' in layers {layers}' if layers else ''} {point.input} n={point.seq_len:,} example {row.seed}"
    )
    return f"{head}: {row.status}: {row.message}" if row.value is None else f"{head}: {row.metric} {row.value:.4g}"


def duration(seconds: float) -> str:
    """A span of time for people: 45 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
