"""Numbers and names as a reader sees them: the same in figures, tables and exports."""

from __future__ import annotations

import html
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from hyperbench.store.schema import Flag

#: Labels of the passes, in the order in which they are shown.
PASS_LABELS = {"forward": "forward", "forward_backward": "forward+backward", "backward": "backward"}
MASK_LABELS = {False: "without causal masking", True: "with causal masking"}
FLAG_MEANINGS: dict[str, str] = {
    Flag.BIMODAL: "the samples fall into two groups apart from each other, and the median is one of them or between",
    Flag.DRIFT: "the samples get slower or faster with time, and the median is that of the time they were taken in",
    Flag.HOST_BOUND: "the host takes longer to launch the call than the device to do it: by itself it takes as long as "
    "its launch",
    Flag.BUSY_MACHINE: "other processes used the cores meanwhile",
    Flag.THROTTLED: "the clocks of the device were held down meanwhile",
    Flag.ABOVE_PEAK: "more operations per second than the device can do: not all of the work was timed",
    Flag.LEAKS: "under the causal mask it sees later keys or values: its times and errors are not those of causal "
    "attention",
}


def is_null(value: Any) -> bool:
    """True for a cell without a value (None, NaN or pandas' NA)."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType")


def is_flag(value: Any) -> bool:
    """True for a truth value, of Python or of numpy."""
    return type(value).__name__ in ("bool", "bool_")


def escape(value: Any) -> str:
    """A text of a run made safe for HTML, plotly's markup and MathJax: shown letter by letter, never interpreted."""
    text = html.escape(str(value), quote=False)
    # By number: plotly knows the names of few entities.
    for char in "\"'$":
        text = text.replace(char, f"&#{ord(char)};")
    return text


def plain(value: Any) -> str:
    """A cell as text: 256.0 is "256", True is "true", null is ""."""
    if is_null(value):
        return ""
    if is_flag(value):
        return "true" if value else "false"
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)


def short(text: str, limit: int = 160) -> str:
    """A text on one line, cut where it is too long for a hover or a note."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 2]} …"


def status_text(status: Any, message: Any) -> str:
    """A status with its message, if it has one: "error: out of memory"."""
    return plain(status) + (f": {message}" if not is_null(message) and message else "")


def printable(value: object) -> str:
    """A value as text on one line, without characters that a terminal would act on."""
    return letters(" ".join(str(value).split()))


def letters(text: str) -> str:
    """A text without characters that a terminal would act on, but for its line breaks; other white space is a space."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " * c.isspace() for c in text)


def significant(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, thousands separated, never in exponent form from 1e-4 on."""
    if is_null(value):
        return ""
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if number == 0:
        return "0"
    # The exponent after rounding: 9.996 with three digits is 10.0, not 10.00.
    magnitude = int(f"{number:.{digits - 1}e}".partition("e")[2])
    if magnitude < -4:
        return f"{number:.{digits - 1}e}"
    return f"{number:,.{max(0, digits - 1 - magnitude)}f}"


def milliseconds(value: Any) -> str:
    """A duration given in ms with its unit: µs, ms or s, whichever reads best."""
    if is_null(value):
        return ""
    number = float(value)
    if 0 < number < 0.1:
        return f"{significant(number * 1e3)} µs"
    if number >= 10_000:
        return f"{significant(number / 1e3)} s"
    return f"{significant(number)} ms"


def ratio(value: Any) -> str:
    """A speedup with its sign: 54.3×."""
    return "" if is_null(value) else f"{significant(value)}×"


def thousands(value: Any) -> str:
    """A power of two as the field writes it on an axis, rounded down: 512, 4k, 65k, 131k, 1M."""
    number = int(value)
    if number >= 1_000_000:
        return f"{number // 1_000_000}M"
    return f"{number // 1000}k" if number >= 1000 else str(number)


def at(dim: str, value: Any) -> str:
    """A place on an axis: "n = 1,024", "block_size = 256"."""
    return f"n = {int(value):,}" if dim == "seq_len" else f"{dim} = {plain(value)}"


def passes_in(values: Iterable[str]) -> list[str]:
    """The passes that occur, in the order in which they are shown."""
    found = set(values)
    return [name for name in PASS_LABELS if name in found]


def counted(count: int, name: str, plural: str = "s") -> str:
    """A number of things: "1 row", "2 rows"."""
    return f"{count} {name}{'' if count == 1 else plural}"


def lengths_text(lengths: Iterable[int]) -> str:
    """Sequence lengths in order: "1,024, 2,048"."""
    return ", ".join(f"{int(n):,}" for n in sorted(lengths))


def flags_in(cells: Iterable[Any]) -> list[str]:
    """Every flag in cells of the column `flags`, each once, in the order of its first row."""
    texts = [str(cell) for cell in cells if not is_null(cell)]
    return list(dict.fromkeys(flag for text in texts for flag in text.split(",") if flag))


def differing(counts: Mapping[str, Mapping[Any, int]]) -> list[str]:
    """A line for each condition that differs within some rows: from the numbers of rows by its value."""
    lines = []
    for name, found in counts.items():
        if len(found) > 1:
            told = ", ".join(f"{plain(value)} ({counted(n, 'row')})" for value, n in found.items())
            lines.append(f"{name} differs within these rows: {told}")
    return lines


def machine_of(environment: Mapping[str, Any]) -> str:
    """The name of the machine of an environment."""
    names = (environment.get(key) for key in ("machine", "gpu_name", "cpu_model"))
    return next((str(name) for name in names if name), "machine not recorded")


def json_value(value: Any) -> Any:
    """A value as JSON holds it, containers too: null for a missing value, the name of an infinity."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if is_null(value):
        return None
    item = value.item() if hasattr(value, "item") else value
    return str(item) if isinstance(item, float) and not math.isfinite(item) else item
