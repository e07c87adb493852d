"""Faults done to runs and their folders, counted: what was tried, what was lost, what was altered and accepted.

    python -m tests.survival.faults [SHARE] [SEED]

Kills, torn writes and full disks come at every call of the system that a session makes; bytes of every file of a
finished folder are flipped, cut, overwritten and doubled. The same share and seed try the same. No torch.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.session import measure
from hyperbench.store import run_folder
from hyperbench.store.files import DamageWarning, StoreError
from hyperbench.store.journal import Journal
from hyperbench.store.journal_lines import line_of
from hyperbench.store.record_json import to_json
from hyperbench.store.schema import Record
from tests.helpers.fake_worker import FakeWorker, Listener
from tests.helpers.made_runs import tiny

WORDS = ("shape.seq_len=64,128", "method=[math,hyper]")
_CALLS = ("open", "write", "pwrite", "fsync", "replace", "link", "unlink", "ftruncate")
_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
#: What is done at a call: the process ends, it ends half way through a write, the disk is full from then on.
MOMENTS = ("killed", "killed in a write", "full disk")
DAMAGES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "a bit flipped": lambda data, chance: _flipped(data, chance, 1),
    "eight bits flipped": lambda data, chance: _flipped(data, chance, 8),
    "cut": lambda data, chance: bytes(data[: chance.randrange(len(data))]),
    "a block of zeros": lambda data, chance: _over(data, chance, lambda block: bytes(len(block))),
    "a block of noise": lambda data, chance: _over(data, chance, lambda block: chance.randbytes(len(block))),
    "a block left out": lambda data, chance: _over(data, chance, lambda block: b""),
    "a block twice": lambda data, chance: _over(data, chance, lambda block: block * 2),
}
FILES = (run_folder.JOURNAL, run_folder.CONFIG, run_folder.ENVIRONMENT, "timings.csv", "errors.parquet")


def session(folder: Path, acknowledged: Callable[[Record], object] = repr) -> None:
    """`hyperbench run --resume` with a made-up worker; `acknowledged` hears of each record that is written."""
    listener = Listener()
    listener.row = acknowledged  # type: ignore[method-assign,assignment]
    run = tiny(*WORDS)
    measure(run, open_folder(run, folder, resume=True), listener, spawn=lambda env, log: FakeWorker())


def records_of(folder: Path) -> list[str]:
    """The records of a folder's journal, each as its line."""
    if not (folder / run_folder.JOURNAL).exists():
        return []
    with Journal(folder / run_folder.JOURNAL) as journal:
        return [line_of(to_json(record)).decode() for record in journal.records]


def at_call(number: int, moment: str, calls: Iterator[int]) -> None:
    """Let this process come to harm at some call of the system."""
    for name in _CALLS:
        setattr(os, name, _harmed(getattr(os, name), name, number, moment, calls))


def _harmed(call: Any, name: str, number: int, moment: str, calls: Iterator[int]) -> Callable[..., Any]:
    def harmed(*args: Any, **options: Any) -> Any:
        now = next(calls)
        if moment == "full disk":
            if now >= number and name in ("write", "pwrite"):
                raise _FULL
        elif now == number:
            if moment == "killed in a write" and name in ("write", "pwrite"):
                call(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)

    return harmed


def harm_at(folder: Path, number: int, moment: str) -> tuple[list[str], bool]:
    """The records that a session had acknowledged before it came to harm at a call, and whether it came to its end."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        told = os.write
        at_call(number, moment, iter(range(10**9)))
        code = 1
        try:
            session(folder, lambda record: told(write, line_of(to_json(record))))
            code = 0
        except (StoreError, OSError):
            pass  # the disk is full, and it says so
        finally:
            os._exit(code)
    os.close(write)
    with open(read, "rb") as file:
        lines = file.read().decode().splitlines(keepends=True)
    return lines, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def harm_sessions(root: Path, share: float, seed: str) -> dict[str, Counter[str]]:
    """Harm at the calls of a session, one after the other; then it goes on to its end."""
    session(root / "whole")
    whole = sorted(records_of(root / "whole"))
    found: dict[str, Counter[str]] = {}
    for moment in MOMENTS:
        count = found[moment] = Counter(tried=0, lost=0, altered=0, unfinished=0)
        chance, is_end, number = random.Random(f"{seed}:{moment}"), False, 0
        while not is_end:
            folder = root / f"{moment} {number}"
            kept, is_end = harm_at(folder, number, moment)
            session(folder)
            now = records_of(folder)
            count["tried"] += 1
            count["lost"] += len(set(kept) - set(now)) + (len(whole) - len(set(now)))
            count["altered"] += len(set(now) - set(whole)) + len(now) - len(set(now))
            count["unfinished"] += bool(list(folder.glob(".*")) or (folder / "begun.json").exists())
            shutil.rmtree(folder)
            number += 1 if share >= 1 else chance.randrange(1, int(2 / share) + 1)
    return found


def damage_files(root: Path, times: int, seed: str) -> dict[str, Counter[str]]:
    """Damage to each file of a finished folder: what was read then, against what was written."""
    folder = root / "finished"
    session(folder)
    before = _read(folder)[0]
    found: dict[str, Counter[str]] = {}
    for name in FILES:
        data = (folder / name).read_bytes()
        for damage, harmed in DAMAGES.items():
            chance = random.Random(f"{seed}:{name}:{damage}")
            count = found[f"{name}: {damage}"] = Counter(tried=0, lost=0, altered=0, told=0)
            for _ in range(times):
                (folder / name).write_bytes(harmed(bytearray(data), chance))
                after, is_told = _read(folder)
                count["tried"] += 1
                count["told"] += is_told
                count["altered"] += (
                    not is_told and after != before if name != run_folder.JOURNAL else _altered(before, after)
                )
                count["lost"] += not is_told and after != before
            (folder / name).write_bytes(data)
    return found


def _read(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """What is read of a folder, and whether it was refused or read with a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamageWarning)
        try:
            run = run_folder.load_run(folder)
        except StoreError:
            return None, True
        rows = {
            name: {json.dumps(row, default=str, sort_keys=True) for row in getattr(run, name).to_dict("records")}
            for name in ("timings", "errors")
        }
    return {**rows, "config": run.config, "environment": run.environment}, bool(caught)


def _altered(before: dict[str, Any] | None, after: dict[str, Any] | None) -> bool:
    """True if a row was read that was never written."""
    if before is None or after is None:
        return False
    return any(after[name] - before[name] for name in ("timings", "errors"))


def _flipped(data: bytearray, chance: random.Random, bits: int) -> bytes:
    for _ in range(bits):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _over(data: bytearray, chance: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    start = chance.randrange(len(data))
    end = start + chance.randrange(1, 512)
    return bytes(data[:start]) + change(bytes(data[start:end])) + bytes(data[end:])


def table(found: dict[str, Counter[str]]) -> str:
    """The counts as a table of Markdown."""
    names = list(next(iter(found.values())))
    head = [f"| fault | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    return "\n".join([*head, *(f"| {what} | {' | '.join(f'{n[k]:,}' for k in names)} |" for what, n in found.items())])


def main(share: float = 1.0, seed: str = "any") -> None:
    """Try everything, and print the counts."""
    warnings.simplefilter("ignore", DamageWarning)
    with tempfile.TemporaryDirectory() as scratch:
        print(table(harm_sessions(Path(scratch), share, seed)), flush=True)
        print()
        print(table(damage_files(Path(scratch), max(1, round(1000 * share)), seed)))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *sys.argv[2:3])
