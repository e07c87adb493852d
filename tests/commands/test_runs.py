"""From a command line to tables and figures; stopped, continued, and kept from mixing what does not belong together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hyperbench.measure.runner import noise_floor
from hyperbench.measure.runner.locks import DeviceLock
from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Timing
from tests.helpers.commands import QUICK, TINY, Answer, Call, process
from tests.helpers.made_runs import last_of

STAGED = (*TINY, "method=[flash2,hyper]", "passes=[forward]", "stages=true")
PLANNING = ["hash", "probe", "sort", "sample"]
STAGES = {False: [*PLANNING, "attend", "mean_keys"], True: [*PLANNING, "attend", "leaves", "merge", "mean_keys"]}
PASSES = {"forward", "backward", "forward_backward"}
METRICS = {"out_rel_fro", "out_max_abs", "out_row_rel_p50", "dq_rel_fro", "dk_rel_fro", "dv_rel_fro", "out_rel_op"}


def copy_of(run: Path, folder: Path) -> Path:
    """A run's folder that a test may change."""
    return Path(shutil.copytree(run, folder / "run"))


def test_every_point_has_every_pass_and_its_errors(measured: Path) -> None:
    run = load_run(measured)
    assert set(run.timings["status"]) == {"ok"}
    assert run.timings.groupby("point_id")["pass"].agg(set).eq(PASSES).all()
    grid = set(run.timings[["method", "seq_len", "is_causal"]].itertuples(index=False, name=None))
    assert grid == {(m, n, c) for m in ("flash2", "hyper") for n in (64, 96) for c in (False, True)}
    for _, rows in run.errors.groupby("point_id"):
        assert set(rows["metric"]) >= METRICS
        assert rows["value"].notna().all()
    seeds = run.errors[run.errors["method"] == "hyper"].groupby("point_id")["seed"].agg(set)
    assert seeds.eq({0, 1}).all()


def test_the_folder_holds_what_made_the_numbers(measured: Path) -> None:
    config = yaml.safe_load((measured / "config.yaml").read_text())
    assert config["sweep"]["axes"]["shape.seq_len"] == [64, 96]
    environment = json.loads((measured / "environment.json").read_text())
    for key in ("machine", "torch", "python", "threads", "code", "started", "config_hash"):
        assert environment[key]
    for name in ("timings", "errors"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(measured / f"{name}.parquet")[["method"]].astype(object),
            pd.read_csv(measured / f"{name}.csv")[["method"]].astype(object),
        )


def test_an_exact_method_is_exact_and_an_approximate_one_is_not(measured: Path) -> None:
    errors = load_run(measured).errors.query("metric == 'out_rel_fro'")
    assert (errors[errors["method"] == "flash2"]["value"] < 1e-5).all()
    assert (errors[errors["method"] == "hyper"]["value"] > 1e-3).all()


def test_figures_tables_and_exports_are_made_from_the_folder(measured: Path, call: Call, tmp_path: Path) -> None:
    plotted = json.loads(call("plot", "--run", str(measured), "--out", "figures", "--json").out)
    assert {Path(p).name for p in plotted["paths"]} == {"crossover.html", "fig4.html", "times.html"}
    assert (tmp_path / "figures" / "fig4.html").stat().st_size > 1_000_000
    shown = call("show", "--run", str(measured))
    assert shown.code == 0
    assert "flash2" in shown.out
    assert len(json.loads(call("show", "--run", str(measured), "--json").out)["rows"]) == 24
    for kind in ("csv", "parquet", "latex", "markdown"):
        answer = json.loads(call("export", "--format", kind, "--run", str(measured), "--out", kind, "--json").out)
        assert all(Path(p).stat().st_size > 0 for p in answer["paths"])


def test_a_dry_run_tells_points_and_time_and_writes_nothing(call: Call, tmp_path: Path) -> None:
    told = json.loads(call("run", "shape.seq_len=512,1024", "method.hyper.block_size=32,64", "--dry-run", "--json").out)
    found = [(p["method"], p["seq_len"], p["hyper"].get("block_size")) for p in told["points"]]
    assert sorted(found, key=str) == sorted(
        [(m, n, b) for n in (512, 1024) for m, b in (("flash2", None), ("hyper", 32), ("hyper", 64))], key=str
    )
    assert told["estimate_s"] == pytest.approx(sum(p["estimate_s"] for p in told["points"]), abs=0.1)
    assert told["device"] in ("cpu", "cuda")
    assert told["device_reason"]
    assert list(tmp_path.iterdir()) == []


def test_the_newest_run_is_found_without_a_name(measured: Path, call: Call, tmp_path: Path) -> None:
    shutil.copytree(measured, tmp_path / "results" / "runs" / "one")
    assert json.loads(call("show", "--json").out)["run"] == "results/runs/one"


def test_a_finished_run_resumes_to_nothing(measured: Path, tmp_path: Path, call: Call) -> None:
    run = copy_of(measured, tmp_path)
    before = (run / "journal.jsonl").read_bytes()
    answer = call("run", *TINY, f"out={run}", "--resume", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["measured_now"] == {}
    assert (run / "journal.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_torn_journal_resumes_to_the_whole(measured: Path, tmp_path: Path, call: Call) -> None:
    run = copy_of(measured, tmp_path)
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    (run / "journal.jsonl").write_bytes(b"".join(kept) + lines[len(kept)][:40])
    for table in run.glob("*.parquet"):
        table.unlink()
    answer = call("run", *TINY, "out=run", "--resume", "--json")
    assert answer.code == 0, answer.err
    now = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert now[: len(kept)] == kept
    keys = [r.key for r in read_journal(run / "journal.jsonl") if isinstance(r, Timing)]
    assert len(keys) == len(set(keys)) == 24
    assert len(pd.read_parquet(run / "timings.parquet")) == 24


@pytest.mark.slow
def test_stages_are_measured_shown_plotted_exported_and_not_measured_twice(tmp_path: Path, call: Call) -> None:
    dry = json.loads(call("run", *STAGED, "--dry-run", "--json").out)
    assert dry["stages"] == len(dry["points"]) == 8
    answer = call("run", *STAGED, "out=run", "--json")
    # A method that tells no stages is no failure.
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["stages_now"] == {"ok": 28, "unsupported": 4}
    run = load_run(tmp_path / "run")
    for (_, is_causal), rows in run.stages[run.stages["method"] == "hyper"].groupby(["point_id", "is_causal"]):
        assert list(rows.sort_values("position")["stage"]) == STAGES[bool(is_causal)]
        assert (rows["median_ms"] > 0).all()
        assert rows["n_samples"].between(1, 3).all()  # fewer where the machine is too busy for the budget
    flash = run.stages[run.stages["method"] == "flash2"]
    assert (set(flash["stage"]), set(flash["status"])) == ({"all"}, {"unsupported"})
    written = pd.read_csv(tmp_path / "run" / "timings.csv", keep_default_na=False)
    assert list(written["stage"]) == list(run.timings["stage"])
    assert set(pd.read_parquet(tmp_path / "run" / "timings.parquet")["stage"]) == {"", *run.stages["stage"]}
    shown = call("show", "--run", "run")
    assert "stages of hyper, with causal masking" in shown.out
    assert len(json.loads(call("show", "--run", "run", "--json").out)["stages"]) == 32
    (figure,) = json.loads(call("plot", "stages", "--run", "run", "--json").out)["paths"]
    assert (tmp_path / figure).stat().st_size > 1_000_000
    assert (
        "stages of hyper" in (tmp_path / call("export", "--run", "run", "--format", "markdown").out.strip()).read_text()
    )

    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept, lost = lines[:-3], [json.loads(line) for line in lines[-3:]]
    assert all(record["stage"] for record in lost)
    journal.write_bytes(b"".join(kept) + lines[-3][:50])
    again = call("run", *STAGED, "out=run", "--resume", "--json")
    assert json.loads(again.out)["stages_now"] == Counter(record["status"] for record in lost), again.err
    assert json.loads(again.out)["measured_now"] == {}
    assert journal.read_bytes().startswith(b"".join(kept))
    assert len(load_run(tmp_path / "run").stages) == 32


@pytest.mark.slow
def test_a_run_without_stages_has_no_figure_of_them_and_says_how_to_get_one(measured: Path, call: Call) -> None:
    answer = call("plot", "stages", "--run", str(measured), "--out", "figures")
    assert answer.code == 2
    assert answer.err == (
        "hyperbench: figure 'stages' does not fit this run: this run holds no stages; `hyperbench run sweep=stages` "
        "times them, as does stages=true in any sweep\n"
    )
    assert "stages left out: this run holds no stages" in call("plot", "--run", str(measured), "--out", "figures").out


# Real parents and workers are stopped in tests/measure/runner and tests/survival as well.
@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_nothing_is_lost_and_the_rest_follows(
    tmp_path: Path, call: Call, with_signal: signal.Signals
) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "hyperbench", "run", *TINY, "out=run"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    lines = iter(running.stderr.readline, "")
    assert any(" ms, " in line for line in lines), "the run ended before its first result"
    written = read_journal(tmp_path / "run" / "journal.jsonl")
    assert written
    running.send_signal(with_signal)
    running.communicate()
    assert running.returncode == (-signal.SIGKILL if with_signal is signal.SIGKILL else 130)
    kept = read_journal(tmp_path / "run" / "journal.jsonl")
    assert kept[: len(written)] == written
    answer = call("run", *TINY, "out=run", "--resume")
    assert answer.code == 0, answer.err
    run = load_run(tmp_path / "run")
    assert len(run.timings) == 24
    assert set(run.timings["status"]) == {"ok"}


def test_other_settings_are_refused_with_what_differs(measured: Path, call: Call) -> None:
    before = (measured / "journal.jsonl").read_bytes()
    for words in (["--resume"], []):
        answer = call("run", *last_of(*TINY, "error.seeds=[0,7]"), f"out={measured}", *words)
        assert answer.code == 2
        assert "error.seeds" in answer.err
        assert len(answer.err.strip().splitlines()) == 2  # the grid, then the refusal
    assert (measured / "journal.jsonl").read_bytes() == before


def test_two_runs_at_once_on_one_device_are_refused_and_a_finished_one_stays(measured: Path, call: Call) -> None:
    before = (measured / "journal.jsonl").read_bytes()
    with DeviceLock("cpu"):
        for words in (["--fresh", f"out={measured}"], ["out=new"]):
            answer = call("run", *TINY, *words)
            assert answer.code == 2
            assert f"(process {os.getpid()})" in answer.err.splitlines()[-1]
    assert (measured / "journal.jsonl").read_bytes() == before
    assert not Path("new").exists()


def test_a_run_is_not_measured_twice_by_accident(measured: Path, call: Call) -> None:
    answer = call("run", *TINY, f"out={measured}")
    assert answer.code == 2
    assert "--resume" in answer.err
    assert "--fresh" in answer.err


def test_numbers_of_another_machine_are_not_mixed_in(measured: Path, tmp_path: Path, call: Call) -> None:
    run = copy_of(measured, tmp_path)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "machine": "a Z80", "threads": 99}))
    answer = call("run", *TINY, f"out={run}", "--resume")
    assert answer.code == 2
    assert "machine (a Z80 there" in answer.err
    assert "threads (99 there" in answer.err


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--fresh"]])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, call: Call, flags: list[str]) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("dear to somebody")
    answer = call("run", *TINY, f"out={foreign}", *flags)
    assert answer.code == 2
    assert "no run's folder" in answer.err
    assert [p.name for p in foreign.iterdir()] == ["chapter.tex"]


def test_an_unwritable_place_is_one_line(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below", "/proc/run"):
        answer = call("run", *TINY, f"out={out}")
        assert answer.code in (1, 2)
        assert out in answer.err
        assert "Traceback" not in answer.err


@pytest.mark.slow
def test_a_damaged_journal_is_named_by_line(measured: Path, tmp_path: Path, call: Call) -> None:
    run = copy_of(measured, tmp_path)
    lines = (run / "journal.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"kind"', '"kin"')
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")
    for command in (["show"], ["plot"], ["export"]):
        answer = call(*command, "--run", str(run))
        assert answer.code == 0
        (line,) = (line for line in answer.err.splitlines() if line.startswith("warning: "))
        assert "line 3: damaged record" in line


MINE = """
def attention(q, k, v, *, is_causal, gain=1.0):
    assert not is_causal, "no mask here"
    return gain * (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A run of methods that cannot run here and of one from outside, and what the command left behind."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "mine.py").write_text(MINE)
    answer = process(
        folder, "run", *QUICK, "device=cpu", "shape.seq_len=64", "method=[flash2,flash_attn,cudnn]",
        "+method.mine._target_=mine.attention", "+method.mine.gain=0.5", "out=run", "--json",
        PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    )  # fmt: skip
    return folder / "run", answer


@pytest.mark.slow
def test_a_method_that_cannot_run_here_is_a_row_with_its_reason(several: tuple[Path, Answer]) -> None:
    rows = load_run(several[0]).timings.query("method in ['flash_attn', 'cudnn']")
    assert set(rows["method"]) == {"flash_attn", "cudnn"}
    assert set(rows["status"]) == {"unsupported"}
    assert rows["message"].str.contains("CUDA|installed").all()


@pytest.mark.slow
def test_a_method_from_outside_is_measured_and_its_failure_is_a_row(several: tuple[Path, Answer]) -> None:
    folder, answer = several
    assert answer.code == 1, answer.err
    run = load_run(folder)
    assert set(run.timings.query("method == 'flash2'")["status"]) == {"ok"}
    mine = run.timings[run.timings["method"] == "mine"]
    assert set(mine.loc[~mine["is_causal"], "status"]) == {"ok"}
    assert set(mine.loc[mine["is_causal"], "status"]) == {"error"}
    assert mine.loc[mine["is_causal"], "message"].str.contains("no mask here").all()
    error = run.errors.query("method == 'mine' and metric == 'out_rel_fro' and not is_causal")["value"]
    assert error.iloc[0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_the_doctor_says_what_runs_here(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_floor, "PROCESSES", 2)
    answer = call("doctor", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0
    assert report["methods"]["hyper"]["cpu"] is None
    assert "CUDA" in report["methods"]["cudnn"]["cpu"]
    assert report["timer"]["resolution_ns"] > 0
    assert 0 <= report["noise"]["aa_floor"] == report["environment"]["aa_floor"] < 10
    assert "flash2" in call("doctor").out


@pytest.mark.slow
def test_nothing_is_measured_beside_a_run_that_measures(call: Call) -> None:
    with DeviceLock("cpu"):
        report = json.loads(call("doctor", "--json").out)
        assert (report["timer"], report["noise"], report["attention_flops_per_s"]) == (None, None, None)
        assert f"another hyperbench (process {os.getpid()})" in report["busy"]
        text = call("doctor").out
        assert "not measured, so as not to disturb the run that is measuring" in text
        answer = call("run", *TINY, "--dry-run")
    assert answer.code == 0
    assert "on a usual machine: device cpu is being measured" in answer.out
