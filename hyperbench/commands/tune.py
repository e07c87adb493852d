"""`hyperbench tune`: measure a method over its parameters, choose the fastest setting within an error, and check it.

What tunes a setting is never what judges it: the chosen one is measured again, on inputs and with draws of other seeds.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from hyperbench.analyze import tuned
from hyperbench.analyze.text_table import print_table
from hyperbench.analyze.tuned import Choice, Setting
from hyperbench.analyze.view import View, make_view
from hyperbench.commands import exit_codes
from hyperbench.commands import run as run_command
from hyperbench.commands.output import print_json, stderr, stdout
from hyperbench.config.catalog import ConfigError, yaml_text
from hyperbench.config.inputs import FILE_HASH
from hyperbench.measure.cpu_load import read_cpu_times
from hyperbench.measure.runner import prepare
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.work_items import groups_of

#: Keys of words that a check and a command line of the chosen setting have of their own.
_OWN_KEYS = ("seed", "error.seeds", "out")


@dataclass(frozen=True)
class _Search:
    """The search: the words that were given, the method, its swept parameters, and the limit of the error."""

    words: tuple[str, ...]
    method: str
    parameters: tuple[str, ...]
    max_error: float

    def fixed(self, values: Mapping[str, Any], without: Sequence[str] = ()) -> list[str]:
        """The words with these values of the parameters, and without the words of some keys."""
        chosen = {f"method.{self.method}.{name}": value for name, value in values.items()}
        kept = [word for word in self.words if _key(word) not in (*chosen, *without)]
        return [*kept, *(f"{key}={yaml_text(value)}" for key, value in chosen.items())]


@dataclass(frozen=True)
class _Check:
    """The chosen setting measured again: on the same input or on another, and how it differs from the first time."""

    run: Path
    setting: Setting
    same_input: bool
    seeds: str

    @property
    def line(self) -> str:
        """The place of the second measurement, in words."""
        if self.same_input:
            return f"on the same input, {self.seeds}: a recording has no other seed; --check-input names another one"
        return f"on inputs it was not tuned on, {self.seeds}"


def tune(words: list[str], max_error: str, check_words: list[str], options: run_command.Options) -> int:
    """Tune what the words of a command line ask for; 1 if no setting is within the error, or the check is above it.

    Raises ValueError or OSError, one line, on anything that cannot be tuned.
    """
    limit = _limit(max_error)
    words = [*_sweep(words), *words]
    _check_input_words(check_words)
    begun = read_cpu_times()
    prepared = prepare.prepare(words)
    search = _search(words, prepared, limit)
    if check_words:  # refused now rather than after everything was measured
        first = next(point for point in prepared.points if point.method == search.method)
        _prepare_check(search, {name: first.hyper[name] for name in search.parameters}, prepared, check_words)
    if not options.as_json:
        run_command.print_grid(prepared, stderr())
    outcome = run_command.measure(prepared, options, prepared.config.out, begun)
    if outcome.interrupted:
        return _interrupted(options)
    view = make_view(outcome.run)
    choice = tuned.choose(tuned.settings_of(view, search.method, search.parameters), limit)
    check = None
    if choice.fastest is not None:
        if not options.as_json:
            stderr().print("the chosen setting is measured again", highlight=False)
        begun = read_cpu_times()
        again = _prepare_check(search, choice.fastest.values, prepared, check_words)
        folder = outcome.run.path / f"check-{again.config.config_hash}"
        second = run_command.measure(again, options, folder, begun)
        if second.interrupted:
            return _interrupted(options)
        check = _check(search, prepared, again, make_view(second.run), folder)
    _print(search, outcome.run.path, view, choice, check, options)
    failed = run_command.has_failures(outcome.run) or choice.fastest is None
    return int(failed or not _is_within(check, limit))


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--max-error={text} must be a positive number: --max-error 0.1")
    return value


def _sweep(words: Sequence[str]) -> list[str]:
    """The sweep of the settings, unless the words name one."""
    if any(_key(word) == "sweep" for word in words):
        return []
    is_causal = any(_key(word) == "is_causal" and word.partition("=")[2].strip().lower() == "true" for word in words)
    return ["sweep=tune_causal" if is_causal else "sweep=tune"]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _search(words: Sequence[str], prepared: Prepared, limit: float) -> _Search:
    """The method to tune and its parameters. Raises ConfigError where there is no one method, input and shape."""
    config = prepared.config
    if len(groups_of(prepared.points)) > 1:
        several = [k for k, values in config.axes.items() if not k.startswith("method.") and len(values) > 1]
        raise ConfigError(f"tune takes one input of one shape and mask; several values have {', '.join(several)}")
    methods = list(dict.fromkeys(p.method for p in prepared.points if p.method not in config.exact_methods))
    if len(methods) != 1:
        named = ", ".join(methods) or "none"
        raise ConfigError(f"tune takes one approximate method beside the exact ones; chosen: {named}")
    prefix = f"method.{methods[0]}."
    parameters = tuple(key.removeprefix(prefix) for key in config.axes if key.startswith(prefix))
    return _Search(tuple(words), methods[0], parameters, limit)


def _check_input_words(words: Sequence[str]) -> None:
    for word in words:
        if not (_key(word) == "input" or _key(word).startswith("input.")) or "=" not in word:
            raise ConfigError(f"--check-input {word} must name an input or a key of it: --check-input input.layer=8")


def _prepare_check(
    search: _Search, values: Mapping[str, Any], prepared: Prepared, check_words: Sequence[str]
) -> Prepared:
    """The chosen setting under another seed of the input and of the draws, or on the input that the words name."""
    seeds = prepared.config.error.seeds
    keys = {_key(word) for word in check_words}
    if "input" in keys:
        keys |= {_key(word) for word in search.words if _key(word).startswith("input.")}
    words = [
        *search.fixed(values, (*_OWN_KEYS, *keys)),
        f"seed={prepared.points[0].seed + 1}",
        f"error.seeds={yaml_text([seed + max(seeds) + 1 for seed in seeds])}",
        *check_words,
    ]
    found = prepare.prepare(words)
    if len(groups_of(found.points)) > 1:
        raise ConfigError(f"--check-input {' '.join(check_words)}: name one input")
    return found


def _check(search: _Search, prepared: Prepared, again: Prepared, view: View, folder: Path) -> _Check:
    (setting,) = tuned.settings_of(view, search.method, search.parameters)
    one, other = prepared.points[0], again.points[0]
    # A recording is the same whatever the seed.
    same = FILE_HASH in one.input_params and (one.input, one.input_params) == (other.input, other.input_params)
    draws = f"draws {', '.join(map(str, again.config.error.seeds))}"
    return _Check(folder, setting, same, draws if same else f"seed {other.seed}, {draws}")


def _is_within(check: _Check | None, limit: float) -> bool:
    error = None if check is None else check.setting.error
    return error is not None and error.value <= limit


def _interrupted(options: run_command.Options) -> int:
    if not options.as_json:
        stderr().print("interrupted; what was finished is kept: the same command with --resume goes on", soft_wrap=True)
    return exit_codes.INTERRUPTED


def _print(
    search: _Search, run: Path, view: View, choice: Choice, check: _Check | None, options: run_command.Options
) -> None:
    import yaml

    baseline, fastest = view.baseline, choice.fastest
    own_sweep = [word for word in search.words if word in ("sweep=tune", "sweep=tune_causal")]
    command, text = "", ""
    if fastest is not None:
        kept = [word for word in search.fixed(fastest.values, ("out",)) if word not in own_sweep]
        command = f"hyperbench run {shlex.join(kept)}".rstrip()
        text = yaml.safe_dump({"method": {search.method: fastest.values}}, sort_keys=False) if fastest.values else ""
    if options.as_json:
        print_json({
            "run": str(run), "method": search.method, "baseline": baseline, "max_error": search.max_error,
            "pass": tuned.widest_pass(view), "fastest": tuned.setting_data(fastest),
            "as_fast": [tuned.setting_data(s) for s in choice.as_fast],
            "least_error": tuned.setting_data(choice.least_error),
            "within": [tuned.setting_data(s) for s in choice.within],
            "unmeasured": [tuned.setting_data(s) for s in choice.unmeasured],
            "check": check and {
                "run": str(check.run), "same_input": check.same_input, **(tuned.setting_data(check.setting) or {}),
                "is_within": _is_within(check, search.max_error),
            },
            "command": command, "yaml": text,
        })  # fmt: skip
        return
    console = stdout()
    lines = tuned.choice_lines(choice, search.method, baseline, search.max_error)
    if check is not None:
        lines.append(f"{check.line}: {tuned.setting_line(check.setting, baseline)}")
        if check.setting.error is not None and not _is_within(check, search.max_error):
            lines.append(f"there it is above {search.max_error:g}: it does not keep to the limit")
    if len(choice.within) > 1:
        print_table(tuned.settings_table(choice, baseline), console)
    console.print(Text(f"\n{tuned.widest_pass(view)}: {lines[0]}", style="bold"), soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(line), soft_wrap=True)
    if command:
        console.print(Text(f"\n{command}\n\n{text}"), soft_wrap=True)
    console.print(Text(f"all settings: hyperbench show --run {shlex.quote(str(run))}"), soft_wrap=True)
