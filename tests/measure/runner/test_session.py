"""From words to a folder: nothing is written before it is known to run, and no folder of others is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
import yaml

from hyperbench.config.catalog import ConfigError
from hyperbench.measure.messages import Message
from hyperbench.measure.runner import open_run
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.outcome import Outcome
from hyperbench.measure.runner.prepare import Prepared, prepare
from hyperbench.measure.runner.session import measure
from hyperbench.store import journal, run_folder
from hyperbench.store.files import DamageWarning, StoreError
from hyperbench.store.journal import Journal, JournalLostError, read_journal
from hyperbench.store.journal_lines import line_of
from hyperbench.store.record_json import to_json
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Status
from tests.helpers.fake_worker import FakeWorker, Listener
from tests.helpers.made_records import a_timing
from tests.helpers.made_runs import TINY, facts, prepared, tiny

GPU = {
    "cuda_available": True,
    "gpu_name": "Some GPU",
    "gpu_count": 1,
    "gpu_memory_bytes": 2**34,
    "cuda_bfloat16": True,
    "flops_per_s": {"cpu": 1e11, "cuda": 1e14},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


def refusal(*words: str, **changes: Any) -> str:
    """The one line with which words are refused on some machine; nothing is written."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ConfigError) as caught:
        prepared(*words, **changes)
    assert "\n" not in str(caught.value)
    assert sorted(Path.cwd().rglob("*")) == before
    return str(caught.value)


def opened(run: Prepared, out: Path | None, *, resume: bool = False, fresh: bool = False) -> Path:
    """A run's folder."""
    with contextlib.closing(open_folder(run, out, resume=resume, fresh=fresh)) as journal:
        return journal.path.parent


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_device_is_what_is_there_and_the_reason_is_said() -> None:
    assert (prepared().config.device.name, prepared().config.device.reason) == ("cpu", "PyTorch sees no CUDA GPU here")
    on_gpu = prepared("sweep=fig4", **GPU)
    assert (on_gpu.config.device.name, on_gpu.config.device.reason) == ("cuda", "PyTorch sees Some GPU")
    assert {point.dtype for point in on_gpu.points} == {"bfloat16"}
    assert {point.seq_len for point in on_gpu.points} == {2**e for e in range(12, 18)}
    assert on_gpu.speed.flops_per_s == 1e14
    chosen = prepared("device=cpu", **GPU)
    assert (chosen.config.device.name, chosen.config.device.reason) == ("cpu", "device=cpu was asked for")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert refusal("device=cuda").startswith("device=cuda: PyTorch 2.13.0+cpu sees no CUDA GPU here")


def test_a_dtype_that_the_device_lacks_is_refused() -> None:
    old = {**GPU, "cuda_bfloat16": False}
    assert "dtype=bfloat16: Some GPU lacks it" in refusal("sweep=fig4", **old)
    assert prepared("sweep=fig4", "dtype=float16", **old).points


def test_graphs_need_a_gpu() -> None:
    said = refusal("protocol.cuda_graph=true")
    assert said == "protocol.cuda_graph=true needs device=cuda, and this run is on cpu"
    assert prepared("sweep=fig4", "protocol.cuda_graph=true", **GPU).config.protocol.cuda_graph


def test_the_first_problem_of_a_method_is_the_answer() -> None:
    assert refusal(problems=["method mine: no such module", "method x: y"]) == "method mine: no such module"


def test_a_method_that_is_missing_keeps_none_of_the_others_from_being_measured() -> None:
    words = ("method=flash2", "+method.mine._target_=no.such")
    missing = {"no.such": "method mine: _target_=no.such cannot be imported"}
    run = prepared(*words, missing=missing)
    assert run.missing == list(missing.values())
    assert {point.method for point in run.points} == {"flash2", "mine"}
    everything = {**missing, "hyperbench.measure.methods.exact.flash2": "method flash2: no PyTorch"}
    assert refusal(*words, missing=everything) == "method mine: _target_=no.such cannot be imported"


def test_a_default_that_no_point_can_hold_is_refused() -> None:
    words = ("method=flash2", "+method.mine._target_=a.b")
    methods = {"hyperbench.measure.methods.exact.flash2": {"defaults": {}}, "a.b": {"defaults": {"block_size": "big"}}}
    assert "block_size='big'" in refusal(*words, methods=methods)


def test_the_probe_is_asked_about_everything_once() -> None:
    asked: list[Any] = []

    def ask(request: dict[str, Any], env: Any) -> dict[str, Any]:
        asked.append(request)
        return facts(request)

    prepare(["method=hyper,hyper_paper", "method.hyper.block_size=32,64", "shape.seq_len=8,16",
                     "input=gaussian,clustered"], ask)  # fmt: skip
    (request,) = asked
    assert {m["name"]: [h["block_size"] for h in m["hypers"]] for m in request["methods"]} == {
        "hyper": [32, 64],
        "hyper_paper": [None],
    }
    assert [item["family"] for item in request["inputs"]] == ["gaussian", "clustered"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_grid_is_composed_once_for_several_inputs_and_again_only_where_the_likely_device_is_not_there(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    composed: list[list[str]] = []

    def compose(name: str, words: list[str]) -> Any:
        composed.append(words)
        return hydra_compose(name, words)

    hydra_compose = hydra.compose
    monkeypatch.setattr(hydra, "compose", compose)
    monkeypatch.setattr("shutil.which", lambda name: "nvidia-smi" if on_gpu else None)
    several = "input=gaussian,clustered,clustered_values,heavy_keys"
    gpu, cpu = prepared(several, **GPU), prepared(several)
    assert len(composed) == 3
    assert (gpu.config.device.name, cpu.config.device.name) == ("cuda", "cpu")
    assert {p.device for p in gpu.points} == {"cuda"}
    assert {p.device for p in cpu.points} == {"cpu"}
    assert gpu.config.device.reason == "PyTorch sees Some GPU"
    assert len({p.input for p in cpu.points}) == 4


def test_a_new_folder_holds_configuration_and_environment() -> None:
    run = tiny()
    folder = opened(run, Path("a folder/deep inside"))
    assert yaml.safe_load((folder / run_folder.CONFIG).read_text()) == run.config.resolved
    environment = json.loads((folder / run_folder.ENVIRONMENT).read_text())
    assert (environment["device"], environment["config_hash"]) == ("cpu", run.config.config_hash)
    assert load_run(folder).timings.empty
    assert sorted(contents(folder)) == ["config.yaml", "environment.json", "journal.jsonl"]


def test_a_run_without_a_folder_gets_one_of_its_own() -> None:
    folder = opened(tiny(), None)
    assert folder.parent == run_folder.RUNS_ROOT
    assert folder.name.startswith("single-cpu-20")


def test_an_empty_folder_is_taken_and_a_foreign_one_is_not() -> None:
    Path("empty").mkdir()
    opened(tiny(), Path("empty"))
    Path("foreign").mkdir()
    (Path("foreign") / "thesis.tex").write_text("years of work")
    (Path("foreign") / "config.yaml").write_text("a: 1\n")
    Path("file").write_text("x")
    for resume, fresh in ((False, False), (True, False), (False, True)):
        with pytest.raises(StoreError, match="out=foreign is not empty and no run's folder"):
            opened(tiny(), Path("foreign"), resume=resume, fresh=fresh)
        with pytest.raises(StoreError, match="out=file is a file"):
            opened(tiny(), Path("file"), resume=resume, fresh=fresh)
    assert contents(Path("foreign")) == {"thesis.tex": b"years of work", "config.yaml": b"a: 1\n"}


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    Path("file").write_text("x")
    with pytest.raises(StoreError, match="out=file/inside cannot be written"):
        opened(tiny(), Path("file/inside"))


def test_the_same_run_goes_on_only_on_demand() -> None:
    folder = opened(tiny(), Path("run"))
    before = contents(folder)
    with pytest.raises(StoreError, match="holds a run of this configuration; --resume continues it"):
        opened(tiny(), folder)
    assert opened(tiny(), folder, resume=True) == folder
    assert contents(folder) == before


def test_another_configuration_is_refused_with_what_differs() -> None:
    folder = opened(tiny(), Path("run"))
    before = contents(folder)
    other = tiny("error.rows=7", "seed=3")
    for resume in (False, True):
        with pytest.raises(StoreError, match=r"another configuration, which differs in error\.rows, .*seed"):
            opened(other, folder, resume=resume)
    assert contents(folder) == before


def another(folder: Path, **changes: Any) -> None:
    """Make it so that a run was begun in another environment."""
    environment = json.loads((folder / run_folder.ENVIRONMENT).read_text())
    (folder / run_folder.ENVIRONMENT).write_text(json.dumps({**environment, **changes}))


CHANGES: dict[str, Any] = {
    "threads": 64, "machine": "another", "cpu_model": "another", "gpu_name": "another",
    "code": "f" * 12, "torch": "1.0", "driver": "1.2", "env_vars": {"OMP_PLACES": "cores"},
}  # fmt: skip


@pytest.mark.parametrize("changed", list(CHANGES))
def test_numbers_of_two_environments_never_stand_in_one_table(changed: str) -> None:
    folder = opened(tiny(), Path("run"))
    another(folder, **{changed: CHANGES[changed]})
    before = contents(folder)
    with pytest.raises(StoreError, match=rf"another {changed} \(.* there, .* here\); .*--fresh to measure all again"):
        opened(tiny(), folder, resume=True)
    assert contents(folder) == before


def test_keys_that_the_environment_did_not_have_yet_are_no_change() -> None:
    folder = opened(tiny(), Path("run"))
    environment = json.loads((folder / run_folder.ENVIRONMENT).read_text())
    del environment["affinity"], environment["cpu_model"]
    # The same code may stand in another commit.
    (folder / run_folder.ENVIRONMENT).write_text(json.dumps({**environment, "commit": "0" * 40}))
    opened(tiny(), folder, resume=True)


def test_a_fresh_run_replaces_the_old_one() -> None:
    folder = opened(tiny(), Path("run"))
    (folder / "figures").mkdir()
    (folder / "figures" / "fig4.html").write_text("old")
    (folder / run_folder.JOURNAL).write_text(json.dumps(to_json(a_timing())) + "\n")
    opened(tiny("seed=3"), folder, fresh=True)
    assert sorted(contents(folder)) == ["config.yaml", "environment.json", "journal.jsonl"]
    assert read_journal(folder / run_folder.JOURNAL) == []


def test_a_fresh_run_removes_what_hyperbench_made_and_nothing_else() -> None:
    folder = opened(tiny(), Path("run"))
    measured(tiny(), folder)
    made = set(contents(folder))
    kept = {
        name: name.encode()
        for name in (
            "notes.txt",
            "figures/mine.png",
            "data/journal.jsonl",
            ".notes.1.tmp",
            "timings.csv.bak",
            "export/x.csv",
        )
    }
    for name, data in {**kept, "figures/fig4.html": b"", "export/summary.md": b"", ".timings.csv.77.tmp": b""}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    Path("elsewhere").mkdir()
    (Path("elsewhere") / "timings.csv").write_text("years of work")
    (folder / "worker.log").unlink(missing_ok=True)
    (folder / "worker.log").symlink_to(Path("elsewhere/timings.csv").absolute())
    opened(tiny("seed=3"), folder, fresh=True)
    left = contents(folder)
    assert {name: left[name] for name in kept} == kept
    assert set(left) - set(kept) == {"config.yaml", "environment.json", "journal.jsonl"} < made
    assert read_journal(folder / run_folder.JOURNAL) == []
    assert (Path("elsewhere") / "timings.csv").read_text() == "years of work"


@pytest.mark.parametrize("journal", [None, b"", b"{}\n", "another run's"])
def test_a_folder_that_only_looks_like_a_run_is_not_removed(journal: bytes | str | None) -> None:
    of_another = (opened(tiny(), Path("run")) / run_folder.JOURNAL).read_bytes() + line_of(to_json(a_timing()))
    folder = Path("app")
    folder.mkdir()
    (folder / "config.yaml").write_text("port: 80\n")
    (folder / "environment.json").write_text(json.dumps({"run_id": "0", "config_hash": "0"}))
    (folder / "app.py").write_text("years of work")
    if journal is not None:
        (folder / "journal.jsonl").write_bytes(of_another if isinstance(journal, str) else journal)
    before = contents(folder)
    with pytest.raises(StoreError, match=r"out=app is not provably a run: .*; --fresh removes nothing there"):
        opened(tiny(), folder, fresh=True)
    assert contents(folder) == before


def dying(call: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    """A call that ends the process once there are no more left."""
    return lambda *args, **options: call(*args, **options) if next(left, None) is not None else os._exit(9)


def test_a_fresh_run_that_is_killed_midway_can_be_made_again() -> None:
    template = opened(tiny(), Path("template"))
    measured(tiny(), template)
    (template / "notes.txt").write_text("kept")
    finished = False
    for limit in range(0, 200, 2):
        folder = Path(f"run{limit}")
        shutil.copytree(template, folder)
        pid = os.fork()
        if not pid:  # killed at some call that it makes of the system
            left = iter(range(limit))
            for name in ("unlink", "rmdir", "link", "replace", "open", "fsync", "write"):
                setattr(os, name, dying(getattr(os, name), left))
            open_folder(tiny("seed=3"), folder, fresh=True)
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        opened(tiny("seed=3"), folder, fresh=True)
        assert load_run(folder).timings.empty
        assert sorted(contents(folder)) == ["config.yaml", "environment.json", "journal.jsonl", "notes.txt"]
        if finished:
            break
    assert finished
    assert limit > 20


def test_whoever_comes_second_to_a_folder_overwrites_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two machines on one disk whose locks are not shared.
    monkeypatch.setattr("fcntl.flock", lambda fd, how: None)
    noise = open_run.noise_of_run

    def meanwhile(run: Prepared) -> dict[str, Any]:
        monkeypatch.setattr(open_run, "noise_of_run", noise)
        opened(tiny(), Path("run"))
        before.update(contents(Path("run")))
        return noise(run)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(open_run, "noise_of_run", meanwhile)
    with pytest.raises(StoreError, match=r"^out=run "):
        opened(tiny("seed=3"), Path("run"))
    assert contents(Path("run")) == before


def test_nothing_is_written_before_the_lock_is_held() -> None:
    Path("run").mkdir()
    with Journal(Path("run") / run_folder.JOURNAL), pytest.raises(StoreError, match="another process is writing"):
        opened(tiny(), Path("run"))
    assert contents(Path("run")) == {"journal.jsonl": b""}


def test_a_journal_that_is_deleted_meanwhile_ends_the_run_and_what_was_measured_is_beside_it() -> None:
    run = tiny()
    folder = opened(run, Path("run"))

    class Deletes(FakeWorker):
        def receive(self, timeout_s: float) -> Message:
            message = super().receive(timeout_s)
            if message.unit and message.unit.pass_ == "backward":
                (folder / run_folder.JOURNAL).unlink(missing_ok=True)
            return message

    with pytest.raises(JournalLostError, match=r"run/journal\.jsonl was deleted by something else"):
        measured(run, folder, spawn=lambda env, log: Deletes())
    (rescued,) = folder.glob("journal.rescued-*.jsonl")
    assert sorted(contents(folder)) == ["config.yaml", "environment.json", rescued.name]
    rescued.rename(folder / run_folder.JOURNAL)
    measured(run, opened(run, folder, resume=True))
    assert set(load_run(folder).timings["status"]) == {"ok"}


def test_what_workers_print_goes_through_no_link() -> None:
    folder = opened(tiny(), Path("run"))
    Path("precious").write_text("years of work")
    (folder / "worker.log").symlink_to(Path("precious").absolute())
    with pytest.raises(StoreError, match=r"run/worker\.log is no regular file"):
        measured(tiny(), folder)
    assert Path("precious").read_text() == "years of work"


def test_a_run_that_is_being_written_is_not_taken_away() -> None:
    folder = opened(tiny(), Path("run"))
    before = contents(folder)
    with Journal(folder / run_folder.JOURNAL), pytest.raises(StoreError, match="another process is writing"):
        opened(tiny(), folder, fresh=True)
    assert contents(folder) == before


def test_resume_without_a_folder_takes_the_last_run_of_this_configuration() -> None:
    with pytest.raises(StoreError, match="no run of this configuration under results/runs to resume"):
        opened(tiny(), None, resume=True)
    runs = [opened(tiny(*words), run_folder.RUNS_ROOT / name) for name, words in
            (("b", ()), ("c", ()), ("a", ()), ("d", ("seed=3",)))]  # fmt: skip
    for age, folder in zip((2, 1, 3, 0), runs, strict=True):
        os.utime(folder / run_folder.CONFIG, ns=(10**18 - age, 10**18 - age))
    assert opened(tiny(), None, resume=True) == runs[1]
    assert opened(tiny("seed=3"), None, resume=True) == runs[3]


@pytest.mark.parametrize(
    "left", [[], ["config.yaml"], [".config.yaml.123.tmp"], ["config.yaml", ".environment.json.9.tmp"]]
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_while_its_folder_was_made_can_be_started_again(left: list[str], resume: bool) -> None:
    run = tiny()
    whole = contents(opened(run, Path("whole")))
    folder = Path("run")
    folder.mkdir()
    for name in left:
        (folder / name).write_bytes(whole.get(name, b"half"))
    opened(run, folder, resume=resume)
    assert load_run(folder).config == run.config.resolved


def test_a_run_killed_before_its_journal_was_made_goes_on() -> None:
    folder = opened(tiny(), Path("run"))
    (folder / run_folder.JOURNAL).unlink()
    opened(tiny(), folder, resume=True)


def no_process(env: dict[str, str], log: Path) -> FakeWorker:
    """A worker that is none."""
    return FakeWorker()


def measured(run: Prepared, folder: Path, **options: Any) -> Outcome:
    """The outcome of a run that is measured by a worker that is none."""
    return measure(run, Journal(folder / run_folder.JOURNAL), Listener(), **{"spawn": no_process, **options})


def test_a_measured_run_has_its_tables_and_says_beforehand_how_long_it_takes() -> None:
    run = tiny("shape.seq_len=64,128")
    folder = opened(run, Path("run"))
    started_s: list[float] = []
    outcome = measured(run, folder, start=started_s.append)
    assert outcome.statuses == {Status.OK: 2 * 2 * 3}
    assert started_s == [pytest.approx(sum(run.estimates_s()))]
    assert {"timings.csv", "errors.parquet", "errors.csv"} <= set(contents(folder))
    measured(run, opened(run, folder, resume=True), start=started_s.append)
    assert started_s[1] == 0


def test_a_journal_is_parsed_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    from_json = journal.from_json
    monkeypatch.setattr(journal, "from_json", lambda data: (parsed.append(data), from_json(data))[1])
    run = tiny()
    folder = opened(run, Path("run"))
    outcome = measured(run, folder)
    assert parsed == []
    kept = len(read_journal(folder / run_folder.JOURNAL))
    outcome = measured(run, opened(run, folder, resume=True))
    assert len(parsed) == 2 * kept
    pd.testing.assert_frame_equal(outcome.run.timings, load_run(folder).timings)
    pd.testing.assert_frame_equal(outcome.run.errors, load_run(folder).errors)


def test_a_session_says_where_its_time_went() -> None:
    run = tiny()
    folder = opened(run, Path("run"))
    outcome = measured(run, folder)
    assert outcome.time["wall_s"] == pytest.approx(sum(outcome.time["spent_s"].values()), abs=0.1)


def test_a_torn_journal_goes_on_where_it_was_torn() -> None:
    run = tiny()
    folder = opened(run, Path("run"))
    measured(run, folder)
    whole = (folder / run_folder.JOURNAL).read_bytes()
    for cut in range(0, len(whole), len(whole) // 12):
        (folder / run_folder.JOURNAL).write_bytes(whole[:cut])
        measured(run, opened(run, folder, resume=True))
        records = read_journal(folder / run_folder.JOURNAL)
        assert {repr(r) for r in records} == {repr(r) for r in read_journal_of(whole)}
        assert (folder / run_folder.JOURNAL).read_bytes().startswith(whole[: whole[:cut].rfind(b"\n") + 1])


def read_journal_of(data: bytes) -> list[Any]:
    """The records of a journal given as bytes."""
    path = Path("other.jsonl")
    path.write_bytes(data)
    return read_journal(path)


def test_what_a_damaged_line_was_is_measured_again() -> None:
    run = tiny()
    folder = opened(run, Path("run"))
    measured(run, folder)
    before = read_journal(folder / run_folder.JOURNAL)
    lines = (folder / run_folder.JOURNAL).read_bytes().splitlines(keepends=True)
    damaged = lines[3].replace(b"1", b"2", 1)
    (folder / run_folder.JOURNAL).write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
    with pytest.warns(DamageWarning, match="measured again"):
        outcome = measured(run, opened(run, folder, resume=True))
    assert len(outcome.records) == len(before)
    assert set(map(repr, outcome.records)) == set(map(repr, before))
    assert (folder / "journal.jsonl.damaged").read_bytes() == damaged


def test_two_processes_never_measure_into_one_folder() -> None:
    run = tiny()
    folder = opened(run, Path("run"))
    with Journal(folder / run_folder.JOURNAL), pytest.raises(StoreError, match="another process"):
        measured(run, folder)


def test_the_tables_are_written_when_a_run_is_interrupted() -> None:
    class Interrupted(FakeWorker):
        def receive(self, timeout_s: float) -> Message:
            message = super().receive(timeout_s)
            if message.unit and message.unit.pass_ == "backward":
                raise KeyboardInterrupt
            return message

    run = tiny()
    folder = opened(run, Path("run"))
    assert measured(run, folder, spawn=lambda env, log: Interrupted()).interrupted
    assert list(load_run(folder).timings["pass"]) == ["forward", "forward"]
    assert (folder / "timings.csv").read_text().count("\n") == 3


def test_a_probe_that_does_not_run_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(ConfigError, match="PyTorch does not start here: ") as caught:
        prepare(TINY)
    assert "\n" not in str(caught.value)
