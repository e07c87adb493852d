"""Figures of a run as files: HTML that opens offline, and images where an exporter and a browser are present."""

from __future__ import annotations

from pathlib import Path

from hyperbench.analyze.joins import DoesNotFitError, parse_filters
from hyperbench.config.catalog import nearest

FORMATS = ("html", "png", "svg", "pdf")


def plot_run(
    run_dir: Path, figures: list[str] | None, formats: str, out_dir: Path | None, baseline: str = "flash2"
) -> tuple[list[Path], list[str], list[str]]:
    """Write figures of a run to `out_dir` (default: the run's folder, figures/), each by temporary file and rename.

    `figures` holds names, and filters such as `input=gaussian` that choose part of the run; without a name every
    figure that fits is made. `formats` are separated by commas. Returns the files, a line for each figure that does not
    fit, and one for what was asked for and could not be written. Raises ValueError on an unknown name, format or
    filter, on a damaged run, and where a figure that was asked for by name does not fit the run.
    """
    from hyperbench.analyze.figures import available, builder
    from hyperbench.analyze.plotting.write import write_figures
    from hyperbench.analyze.view import make_view
    from hyperbench.store.run_folder import FIGURES, load_run, made_folder

    asked = figures or []
    names = [text for text in asked if "=" not in text]
    where = parse_filters(text for text in asked if "=" in text)
    builders = {name: builder(name) for name in (dict.fromkeys(names) or available())}
    kinds = _check_formats(formats)
    view = make_view(load_run(Path(run_dir)), baseline, where)
    made, messages = {}, []
    for name, build in builders.items():
        try:
            made[name] = build(view)
        except DoesNotFitError as error:
            if name in names:
                raise ValueError(f"figure {name!r} does not fit this run: {error}") from None
            messages.append(f"{name} left out: {error}")
    folder = Path(out_dir) if out_dir is not None else made_folder(run_dir, FIGURES)
    paths, unwritten = write_figures(made, folder, kinds) if made else ([], [])
    return paths, messages, unwritten


def _check_formats(formats: str) -> list[str]:
    kinds = list(dict.fromkeys(part.strip().lower() for part in formats.split(",") if part.strip()))
    for kind in kinds:
        if kind not in FORMATS:
            raise ValueError(f"unknown figure format {kind!r}; allowed: {', '.join(FORMATS)}{nearest(kind, FORMATS)}")
    return kinds or ["html"]
