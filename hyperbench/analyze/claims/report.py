"""The published claims held against runs: in the terminal, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.claims.findings import Finding, Verdict
from hyperbench.analyze.claims.published import Claim, load_claims, reference_folder
from hyperbench.analyze.claims.rules import MODEL_RULES, Rule, rule_of
from hyperbench.analyze.format import json_value, machine_of
from hyperbench.analyze.view import View, make_view
from hyperbench.store.run_folder import JOURNAL, check_run_folder, is_run_folder, latest_run, load_run

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Verdict.HOLDS: "green", Verdict.FAILS: "bold red", Verdict.OPEN: "dim"}


@dataclass(frozen=True)
class Found:
    """A finding with the run and the machine that it is of."""

    run: Path
    machine: str
    finding: Finding


@dataclass(frozen=True)
class Judged:
    """A claim with what was found: a finding of each run that measures it, else that of the run that comes nearest."""

    claim: Claim
    found: tuple[Found, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict over all runs; one of a run on which the claim does not hold decides."""
        verdicts = {one.finding.verdict for one in self.found}
        return next((v for v in (Verdict.FAILS, Verdict.HOLDS) if v in verdicts), Verdict.OPEN)


def chosen_runs(folders: Sequence[Path] | None) -> list[Path]:
    """The runs that are meant: the folders, or the runs within them; else the reference runs, else the newest run.

    Raises StoreError (one line) on a folder that is no run and holds none.
    """
    if not folders:
        reference = reference_folder()
        return (_runs_in(reference) if reference else []) or [latest_run()]
    runs = []
    for folder in folders:
        inside = [] if is_run_folder(folder) or not folder.is_dir() else _runs_in(folder)
        runs += inside or [check_run_folder(folder)]
    return list(dict.fromkeys(runs))


def judge(runs: Sequence[Path]) -> list[Judged]:
    """Every published claim, held against these runs. Raises ValueError (one line) on a damaged run or claim."""
    claims = [(claim, rule_of(claim)) for claim in load_claims()]
    found: dict[str, list[Found]] = {claim.id: [] for claim, _ in claims}
    for path in runs:
        run = load_run(path)
        machine = machine_of(run.environment)
        try:
            view = make_view(run)
        except ValueError as error:  # such as a run without one baseline: nothing in it has a speedup
            none = Finding(Verdict.OPEN, str(error))
            for claim, _ in claims:
                found[claim.id].append(Found(path, machine, none))
            continue
        for claim, rule in claims:
            found[claim.id].append(Found(path, machine, _finding(claim, rule, view)))
    return [Judged(claim, _telling(found[claim.id])) for claim, _ in claims]


def print_claims(judged: Sequence[Judged], console: Console) -> None:
    """Print the claims: the verdict, what was claimed and by whom, what was measured where, and the reason."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for one in judged:
        claim = one.claim
        # Text of files and machines is never taken for markup.
        cell = Text(claim.claim, style="bold")
        cell.append(f"\n{claim.id}: {'[recalled] ' if claim.recalled else ''}{claim.source}", style="not bold dim")
        for found in one.found:
            for line in _lines(found):
                cell.append(f"\n{line}", style="not bold")
        if claim.caveat:
            cell.append(f"\ncaveat: {claim.caveat}", style="not bold dim")
        table.add_row(Text(one.verdict, style=_STYLES[one.verdict]), cell)
    console.print(table)
    console.print(Text(summary(judged), style="bold"))


def summary(judged: Sequence[Judged]) -> str:
    """The counts of the verdicts: "11 claims: 3 hold, 0 do not hold, 8 not measured here"."""
    counts = Counter(one.verdict for one in judged)
    return (
        f"{len(judged)} claims: {counts[Verdict.HOLDS]} hold, {counts[Verdict.FAILS]} do not hold,"
        f" {counts[Verdict.OPEN]} not measured here"
    )


def claims_data(judged: Sequence[Judged], runs: Sequence[Path]) -> dict[str, Any]:
    """The same as plain data that JSON can hold."""
    return {
        "runs": [str(run) for run in runs],
        "counts": {str(v): sum(one.verdict is v for one in judged) for v in Verdict},
        "claims": [
            {
                "id": one.claim.id, "claim": one.claim.claim, "setting": one.claim.setting, "value": one.claim.value,
                "quantity": one.claim.quantity, "source": one.claim.source, "recalled": one.claim.recalled,
                "caveat": one.claim.caveat, "verdict": str(one.verdict), "found": [_data(found) for found in one.found],
            }
            for one in judged
        ],
    }  # fmt: skip


def _runs_in(folder: Path) -> list[Path]:
    runs = (journal.parent for journal in folder.rglob(JOURNAL))
    return sorted(run for run in runs if is_run_folder(run))


def _finding(claim: Claim, rule: Rule, view: View) -> Finding:
    has_scores = view.scores is not None and not view.scores.empty
    if view.timings.empty and not has_scores:
        return Finding(Verdict.OPEN, "the run holds no measurement yet")
    if not isinstance(rule, tuple(MODEL_RULES.values())) and view.timings.empty:
        return Finding(Verdict.OPEN, "this run is of a language model, and times no attention by itself")
    return rule.judge(claim, view)


def _telling(found: Sequence[Found]) -> tuple[Found, ...]:
    """Those that measure the claim; else those with a number for orientation; else the first, for its reason."""
    measured = tuple(one for one in found if one.finding.verdict is not Verdict.OPEN)
    return measured or tuple(one for one in found if one.finding.numbers) or tuple(found[:1])


def _lines(found: Found) -> list[str]:
    finding = found.finding
    told = f"{finding.verdict}: {finding.reason}" if finding.reason else str(finding.verdict)
    if not finding.numbers:
        return [told]
    here = Path.cwd()
    run = found.run.relative_to(here) if found.run.is_relative_to(here) else found.run
    return [*(number.text for number in finding.numbers), f"{told} ({found.machine}; {run})"]


def _data(found: Found) -> dict[str, Any]:
    numbers = [{key: json_value(value) for key, value in vars(number).items()} for number in found.finding.numbers]
    return {
        "run": str(found.run), "machine": found.machine, "verdict": str(found.finding.verdict),
        "reason": found.finding.reason, "numbers": numbers,
    }  # fmt: skip
