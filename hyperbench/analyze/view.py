"""A run as figures and tables see it: one row per point and pass, with speedups, errors and provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.caveats import CAUSAL_IN_Q, caveats
from hyperbench.analyze.format import differing, is_null, machine_of, plain, short, status_text
from hyperbench.analyze.joins import (
    DoesNotFitError,
    check_baseline,
    error_table,
    missing_errors,
    select,
)
from hyperbench.analyze.measures import is_measure, metric_columns
from hyperbench.analyze.rounds import add_speedup, combine_rounds
from hyperbench.analyze.stage_table import stage_table
from hyperbench.store.parameters import KNOWN, method_parameters
from hyperbench.store.schema import KINDS
from hyperbench.store.tables import CONDITIONS, ERROR_SUFFIXES

if TYPE_CHECKING:
    import pandas as pd

    from hyperbench.store.run_folder import Run

#: The error metric that stands alongside every time, and the trivial answers that put it in proportion.
MAIN_ERROR = "out_rel_fro"
TRIVIAL_ERRORS = {"mean_v_rel_fro": "answering mean(v)", "zero_rel_fro": "answering zero"}
#: The label of numbers of protocol=paper, under the title of a figure and in that of a table.
AS_PAPER = "timed the authors' way (they state 20th percentiles, p20_ms): no result by itself"
#: Longer values of parameters are cut in notes and hovers.
_VALUE_CHARS = 40
#: Longer lists of inputs are counted there.
_INPUTS_CHARS = 80
_SHORT = {"block_size": "b", "sample_size": "m", "num_projections": "r", "min_seq_len": "leaf"}
_MEANINGS = {
    "block_size": "b: keys in a query's block",
    "sample_size": "m: sampled keys",
    "num_projections": "r: projections of the hash",
    "min_seq_len": "leaf: up to this length attention is exact",
}


@dataclass(frozen=True)
class View:
    """A run to be shown: `timings` has a row per point and pass with speedup and error columns added.

    `stages` has a row per stage of a forward pass, as `stage_table` makes them.
    `descriptions` are those of methods, `exact_methods` those known to be exact, `error_reasons` why a point (by its
    id) has no error; all may lack some. `as_paper`: timed the authors' way, which is no result by itself. `differing`
    says, a line each, which conditions differ within the rows; `kinds` which methods are trivial answers and which are
    oracles, KINDS by name. `scores` are those of a language model. Where rows are of several runs, the
    id of a point begins with that of its run.
    """

    timings: pd.DataFrame
    stages: pd.DataFrame
    environment: dict[str, Any]
    baseline: str
    descriptions: dict[str, str] = field(default_factory=dict)
    exact_methods: frozenset[str] = frozenset()
    error_reasons: dict[str, str] = field(default_factory=dict)
    as_paper: bool = False
    differing: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    scores: pd.DataFrame | None = None

    @property
    def methods(self) -> list[str]:
        """Every method but the baseline, in the order of the run."""
        return [m for m in self.timings["method"].unique() if m != self.baseline]


def make_view(run: Run, baseline: str = "flash2", where: Mapping[str, Sequence[str]] | None = None) -> View:
    """Select, combine rounds, join speedups and errors. Raises ValueError on a filter that matches nothing."""
    passes, stages, errors = run.passes, run.stages, run.errors
    if run.timings["run_id"].nunique() > 1:
        passes, stages, errors = (
            frame.assign(point_id=frame["run_id"] + "/" + frame["point_id"]) for frame in (passes, stages, errors)
        )
    nodes = _method_nodes(run.config)
    timings, scores, filters = _in_order(passes, list(nodes)), _in_order(run.scores, list(nodes)), where or {}
    # A run of a language model has scores and no timings: filters and baseline are then of those.
    if timings.empty and not scores.empty:
        check_baseline(scores, baseline)
        scores, filters = select(scores, filters, keep_method=baseline), {}
    else:
        check_baseline(timings, baseline)
    chosen = select(timings, filters, keep_method=baseline)
    joined = add_speedup(chosen, baseline)
    of_stages = stages[stages["point_id"].isin(chosen["point_id"])]
    return View(
        joined.merge(error_table(_apart_from(errors, joined)), how="left", left_on="point_id", right_index=True),
        stage_table(of_stages, combine_rounds(timings[timings["point_id"].isin(of_stages["point_id"])])),
        run.environment,
        baseline,
        {m: str(node["description"]) for m, node in nodes.items() if node.get("description")},
        frozenset(m for m, node in nodes.items() if node.get("exact")),
        missing_errors(errors, MAIN_ERROR),
        _timed_as_paper(run.config, chosen),
        tuple(differing({name: Counter(chosen[name].dropna()) for name in ("run_id", *CONDITIONS)})),
        {m: node["kind"] for m, node in nodes.items() if node.get("kind") in KINDS},
        scores,
    )


def _apart_from(errors: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """The same errors; a metric whose columns would have the names of others is called "error NAME"."""
    taken, names = {str(name) for name in timings.columns}, {}
    for name in sorted(str(name) for name in errors["metric"].unique()):
        new = name
        while taken & (columns := {f"{new}{suffix}" for suffix in ERROR_SUFFIXES}):
            new = f"error {new}"
        names[name] = new
        taken |= columns
    return errors.assign(metric=errors["metric"].replace(names))


def _in_order(timings: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Methods in the order of the configuration, if it names them, whatever the order in which rounds measured them."""
    ranks = {name: rank for rank, name in enumerate(methods)}
    if not ranks.keys() >= set(timings["method"]):
        return timings
    return timings.sort_values("method", key=lambda names: names.map(ranks), kind="stable")


def _timed_as_paper(config: Mapping[str, Any], timings: pd.DataFrame) -> bool:
    """True for a run, or timings chosen of it, of protocol=paper."""
    protocol = config.get("protocol")
    of_config = isinstance(protocol, dict) and protocol.get("as_paper") is True
    return of_config or bool((timings["protocol"] == "paper").any())


def _method_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration of each method, by name."""
    methods = config.get("method")
    nodes = methods.items() if isinstance(methods, dict) else ()
    return {str(name): node for name, node in nodes if isinstance(node, dict)}


def error_columns(frame: pd.DataFrame) -> list[str]:
    """The error metrics among a view's columns, without their low and high companions."""
    return [c for c in metric_columns(frame) if c != CAUSAL_IN_Q and not is_measure(c)]


def require_timings(view: View) -> None:
    """Raise DoesNotFitError if no row has a time."""
    if view.timings.empty:
        raise DoesNotFitError("this run holds no timing yet")
    if not view.timings["median_ms"].notna().any():
        statuses = ", ".join(sorted({str(s) for s in view.timings["status"]}))
        raise DoesNotFitError(f"no point of this run has a time (status: {statuses})")


def parameters(frame: pd.DataFrame, method: str, without: Sequence[str] = ()) -> str:
    """A method's own parameters in short, "b=256 m=256 leaf=1,024 iid sampling"; several are listed, none is ""."""
    rows = frame[frame["method"] == method]
    values = {dim: [v for v in rows[dim].unique() if not is_null(v)] for dim in method_parameters(frame)}
    return _in_short({dim: found for dim, found in values.items() if found and dim not in without})


def own_parameters(row: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """The parameters of a row of a table, as `parameters` has them; "" where its method has none."""
    return _in_short({dim: [row[dim]] for dim in method_parameters(frame) if not is_null(row[dim])})


def _in_short(values: Mapping[str, Sequence[Any]]) -> str:
    parts = []
    for dim, found in values.items():
        listed = "|".join(_value(v) for v in sorted(found))
        categorical = dim in KNOWN and dim not in _SHORT
        parts.append(f"{listed} {dim}" if categorical else f"{_SHORT.get(dim, dim)}={listed}")
    return " ".join(parts)


def _value(value: Any) -> str:
    """A value of a parameter: 1,024 for a whole number, and a long text cut."""
    text = short(plain(value), _VALUE_CHARS)
    return f"{int(text):,}" if not isinstance(value, str) and text.isdecimal() else text


def meanings(view: View, without: Sequence[str] = ()) -> list[str]:
    """Notes on the methods, where a title has no space for them, on the letters of parameters, and their caveats.

    As far as they occur; parameters in `without` are on an axis. The texts are not escaped.
    """
    described = [f"{m}: {view.descriptions[m]}" for m in view.methods if m in view.descriptions]
    used = [t for dim, t in _MEANINGS.items() if dim not in without and view.timings[dim].notna().any()]
    texts = [f"{'; '.join(texts)}." for texts in (described if len(described) > 1 else [], used) if texts]
    return [*caveats(view.timings), *texts]


def headline(view: View) -> list[str]:
    """The methods and the machine, in two lines to stand under a title. The texts are not escaped."""
    frame = view.timings
    kernels = _implementations(view)
    methods = [f"{m}: {view.descriptions[m]}" for m in view.methods if m in view.descriptions]
    exact = ["exact attention"] if view.baseline in view.exact_methods else []
    base = [f"{view.baseline}: {', '.join([*exact, *kernels])}"] if kernels else []
    inputs = _inputs(frame)
    dtypes = ", ".join(plain(v) for v in frame["dtype"].unique())
    marked = f"; {AS_PAPER}" if view.as_paper else ""
    where = f"{machine_of(view.environment)}; {dtypes}; {inputs} input{marked}"
    return ["; ".join([*methods, *base]) if len(methods) < 2 else "", where]


def provenance(view: View, varying_dims: Sequence[str] = ()) -> list[str]:
    """The origin of the numbers as short texts: machine, shape, methods, baseline, protocol, input and commit.

    Dimensions in `varying_dims` are on an axis and not repeated. The texts are not escaped.
    """
    frame, env = view.timings, view.environment
    listed = {
        dim: ", ".join(plain(v) for v in frame[dim].dropna().unique())
        for dim in ("device", "dtype", "batch", "heads", "kv_heads", "head_dim", "protocol", "seed")
    }
    shape = [f"{dim}={listed[dim]}" for dim in ("batch", "heads", "head_dim") if dim not in varying_dims]
    if listed["kv_heads"] != listed["heads"]:
        shape.append(f"kv_heads={listed['kv_heads']}")
    kernels = _implementations(view)
    methods = [(m, parameters(frame, m, varying_dims)) for m in view.methods]
    threads = f", {env['threads']} threads" if env.get("threads") and listed["device"] == "cpu" else ""
    commit = str(env.get("commit") or "")
    return [
        f"{machine_of(view.environment)} ({listed['device']}{threads})",
        f"{listed['dtype']}, {', '.join(shape)}" if shape else listed["dtype"],
        *(f"{m}: {text}" for m, text in methods if text),
        f"baseline {view.baseline}" + (f" = {', '.join(kernels)}" if kernels else " (not in this run)"),
        f"protocol {listed['protocol']}",
        f"input {_inputs(frame)} (seed {listed['seed']})",
        f"commit {commit[:10] or 'not recorded'}" + (", dirty" if env.get("dirty") else ""),
    ]


def _inputs(frame: pd.DataFrame) -> str:
    """The names of the inputs, or the first of them and how many more there are."""
    names = [plain(v) for v in frame["input"].unique()]
    text = ", ".join(names)
    if len(names) == 1 or len(text) <= _INPUTS_CHARS:
        return text
    return f"{short(names[0], _INPUTS_CHARS)} and {len(names) - 1} more"


def _implementations(view: View) -> list[str]:
    rows = view.timings[view.timings["method"] == view.baseline]
    return [str(i) for i in rows["implementation"].dropna().unique() if i]


def reason(row: Mapping[str, Any]) -> str:
    """The reason why a row has no speedup or its time is not ok; "" where all is well. Not escaped."""
    told = [status_text(row["status"], row["message"])] if row["status"] != "ok" else []
    # A row with a time of its own has no speedup for want of a baseline.
    if is_null(row["speedup"]) and not is_null(row["median_ms"]) and row["baseline_status"] != "ok":
        told.append(f"baseline {status_text(row['baseline_status'], row['baseline_message'])}")
    if is_null(row["speedup"]) and not is_null(row["median_ms"]) and not is_null(row["baseline_median_ms"]):
        told.append("no round has a time above zero of it and of the baseline")
    return "; ".join(told)
