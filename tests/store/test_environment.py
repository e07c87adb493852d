"""The provenance of a number: every key checked, odd machines named, and nothing that imports torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyperbench.store import provenance
from hyperbench.store.environment import KEYS, changes, checked, sealed, shown
from hyperbench.store.provenance import collect, cpu_label, cpu_model, relevant_env
from tests.helpers.made_runs import facts

SETTINGS = {"device": "cpu", "device_reason": "", "config_hash": "0" * 12, "run_id": "r", "schema_version": 1}


def collected(**changes: Any) -> dict[str, Any]:
    """This machine with a CPU alone, or with what a probe would tell instead."""
    return collect(facts({"methods": []}, **changes), {**SETTINGS, "device": changes.get("device", "cpu")}, {})


def test_every_key_is_there_and_can_be_shown() -> None:
    found = collected()
    assert list(found) == list(KEYS)
    for name in ("cpu_count", "memory_total_bytes", "python", "os", "hyperbench", "torch", "code", "machine"):
        assert found[name]
    texts = shown(found)
    assert set(texts) == {name for name, value in found.items() if value is not None}
    assert texts["memory_total_bytes"].endswith("GiB")
    json.dumps(found)


def test_what_torch_says_goes_before_what_the_package_says() -> None:
    assert collected()["torch"] == "2.13.0+cpu"
    assert collected()["gpu_name"] is None


def test_the_machine_is_the_device_that_was_measured() -> None:
    gpu = {"gpu_name": "Some GPU", "gpu_count": 1, "gpu_memory_bytes": 2**34}
    assert collected(**gpu, device="cuda")["machine"] == "Some GPU"
    assert collected(**gpu, device="cpu")["machine"] == collected()["machine"] != "Some GPU"


def test_the_environment_of_the_workers_counts() -> None:
    found = collect(facts({"methods": []}), SETTINGS, {"OMP_NUM_THREADS": "3", "HOME": "/nowhere"})
    assert found["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert "HOME" not in found["env_vars"]
    assert relevant_env({"PATH": "x", "CUDA_B": "2", "CUDA_A": "1", "MALLOC_X": "0"}) == {
        "CUDA_A": "1",
        "CUDA_B": "2",
        "MALLOC_X": "0",
    }
    # What decides which kernels run, and how they are built.
    assert set(relevant_env({"TRITON_INTERPRET": "1", "HYPERATTN_AUTOTUNE": "0", "HYPERATTN_CACHE_DIR": "x"})) == {
        "TRITON_INTERPRET",
        "HYPERATTN_AUTOTUNE",
    }


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("machine", ""), ("machine", 3), ("cpu_count", 0), ("cpu_count", "2"), ("cpu_count", True), ("threads", -1),
        ("memory_total_bytes", 1.5), ("gpu_count", -1), ("commit", "main"), ("dirty", "yes"), ("dirty", 1),
        ("env_vars", []), ("run_id", "  "), ("schema_version", 0),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"environment key {name}="):
        checked({name: bad})
    assert checked({name: None}) == {name: None}


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour' is unknown; allowed: machine"):
        checked({"colour": "blue"})


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: Other\n", "Some CPU @ 2.00GHz"),
        ("model\t\t: 85\nmodel name\t: A: with a colon\n", "A: with a colon"),
        ("processor : 0\nHardware : BCM2835\nModel : Raspberry Pi 4\n", "Raspberry Pi 4"),
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nmodel\t: 9\n", "AMD EPYC (family 23, model 1)"),
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\n", "AMD EPYC 7B13"),
        ("model name\t: AMD EPYC\n", "AMD EPYC"),
        ("model name\t: \nModel\t: Board\n", "Board"),
        ("CPU implementer\t: 0x41\n", None),
        ("model name", None),
        ("", None),
        (":::\n\n\x00", None),
    ],
)
def test_odd_cpuinfo_gives_a_model_or_none(text: str, model: str | None) -> None:
    assert cpu_model(text) == model


@pytest.mark.parametrize(
    ("model", "count", "label"),
    [
        ("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", 4, "Intel Xeon E5-2670 v3, 4 cores"),
        ("AMD EPYC 7763 64-Core Processor", 1, "AMD EPYC 7763 64-Core, 1 core"),
        ("  Odd   Name  ", 2, "Odd Name, 2 cores"),
        ("Some(tm) CPU", None, "Some"),
        ("(R) @ 2 GHz", 2, "unknown CPU, 2 cores"),
    ],
)
def test_the_label_of_a_cpu_is_short(model: str, count: int | None, label: str) -> None:
    assert cpu_label(model, count) == label


def test_a_cpu_without_a_name_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert cpu_label(None, 8) == "riscv64, 8 cores"
    monkeypatch.setattr("platform.machine", lambda: "")
    assert cpu_label(None, 8) == "unknown CPU, 8 cores"


def test_a_copy_that_lies_in_another_repository_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    package = tmp_path / "site-packages" / "hyperbench"
    package.mkdir(parents=True)
    assert provenance._repository(package) == {"commit": None, "dirty": None}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_variables_of_git_do_not_decide_whose_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = ["-c", "user.name=n", "-c", "user.email=a@b.c", "commit", "--quiet", "--allow-empty", "--message=m"]
    for name in ("ours", "foreign"):
        (tmp_path / name).mkdir()
        for words in (["init", "--quiet"], [*commit, f"--author={name} <a@b.c>"]):
            assert provenance._output(["git", "-C", str(tmp_path / name), *words]) is not None
    package = tmp_path / "ours" / "hyperbench"
    told = provenance._repository(package)
    assert told["commit"] != provenance._repository(tmp_path / "foreign" / "hyperbench")["commit"]
    assert told["dirty"] is False
    foreign = str(tmp_path / "foreign")
    for name, value in {
        "GIT_DIR": f"{foreign}/.git", "GIT_WORK_TREE": foreign, "GIT_INDEX_FILE": f"{foreign}/.git/other",
        "GIT_OBJECT_DIRECTORY": f"{foreign}/.git/objects", "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.worktree", "GIT_CONFIG_VALUE_0": foreign,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert provenance._repository(package) == told


def test_a_tool_that_fails_tells_nothing() -> None:
    assert provenance._output(["false"]) is None
    assert provenance._output(["no-such-tool-anywhere"]) is None
    assert provenance._output(["echo", "yes"]) == "yes"


@pytest.mark.parametrize(
    ("numbers", "text"), [({0, 1, 2, 3}, "0-3"), ({5}, "5"), ({8, 0, 1, 3}, "0-1,3,8"), ([2, 1, 2], "1-2"), ([], "")]
)
def test_cores_are_written_as_people_write_them(numbers: set[int], text: str) -> None:
    assert provenance.ranges(numbers) == text


def test_the_cores_that_may_be_used_and_the_threads_are_told() -> None:
    found = collected(parallel={"intraop": "2", "backend": "OpenMP"}, cudnn="91002")
    assert found["affinity"]
    assert shown(found)["parallel"] == "intraop=2 backend=OpenMP"
    assert found["cudnn"] == "91002"


def test_a_distribution_that_is_missing_has_no_version() -> None:
    assert provenance.version_of("no-such-distribution") is None
    assert provenance.version_of("numpy")


def test_the_fingerprint_of_the_code_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.code_fingerprint()
    assert before == provenance.code_fingerprint()
    copy = tmp_path / "hyperbench"
    (copy / "measure").mkdir(parents=True)
    (copy / "measure" / "clock.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    changed = provenance.code_fingerprint()
    (copy / "measure" / "clock.py").write_text("x = 2\n")
    assert len({before, changed, provenance.code_fingerprint()}) == 3


def test_the_fingerprint_follows_the_code_of_a_method_from_elsewhere_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/__init__.py", "mine/fast.py", "alone.py"):
        (tmp_path / name).write_text("raise SystemExit\n")
    targets = ["mine.fast.attention", "alone.Attention.forward", "nowhere.attention"]
    seen = [provenance.code_fingerprint(), provenance.code_fingerprint(targets)]
    assert provenance.code_fingerprint(reversed(targets)) == seen[-1]
    for name in ("mine/fast.py", "alone.py"):
        (tmp_path / name).write_text("raise SystemExit  # changed\n")
        seen.append(provenance.code_fingerprint(targets))
    assert len(set(seen)) == 4
    (tmp_path / "mine" / "other.py").write_text("")
    assert provenance.code_fingerprint(targets) == seen[-1]


def test_the_fingerprint_holds_what_decides_when_to_stop_and_nothing_that_only_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "analyze").mkdir()
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    before = provenance.code_fingerprint()
    (tmp_path / "commands").mkdir()
    for name in ("analyze/show.py", "commands/doctor.py", "cli.py", "options.py"):
        (tmp_path / name).write_text("x = 1\n")
    assert provenance.code_fingerprint() == before
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "rounds.py").write_text("x = 1\n")
    assert provenance.code_fingerprint() != before


def test_the_command_line_and_the_parent_process_import_no_torch_and_no_pandas() -> None:
    packages = ("commands", "config", "store", "stats", "measure.runner", "measure.messages", "measure.work_items")
    program = (
        "import sys, importlib, pkgutil\n"
        f"for name in {packages}:\n"
        "    package = importlib.import_module(f'hyperbench.{name}')\n"
        "    for module in pkgutil.iter_modules(getattr(package, '__path__', ())):\n"
        "        importlib.import_module(f'hyperbench.{name}.{module.name}')\n"
        "from hyperbench.config.compose import load; load(['sweep=smoke'], lambda asked: ('cpu', ''))\n"
        "print(sorted({'torch', 'pandas', 'plotly', 'hyperattn_core'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_a_run_imports_no_torch(tmp_path: Path) -> None:
    for name, text in (("config.yaml", "a: 1\n"), ("environment.json", json.dumps(sealed({}))), ("journal.jsonl", "")):
        (tmp_path / name).write_text(text)
    program = (
        "import sys; from hyperbench.store.run_folder import load_run, write_tables; write_tables(sys.argv[1]);"
        "load_run(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_change_of_environment_variables_names_those_that_differ() -> None:
    there = {"env_vars": {"MALLOC_TOP_PAD_": "1", "OMP_PROC_BIND": "true"}, "threads": 2}
    here = {"env_vars": {"MALLOC_TOP_PAD_": "1", "OMP_NUM_THREADS": "1"}, "threads": 1}
    assert changes(there, here, ("threads", "env_vars")) == [
        "threads (2 there, 1 here)",
        "env_vars (OMP_NUM_THREADS=unset OMP_PROC_BIND=true there, OMP_NUM_THREADS=1 OMP_PROC_BIND=unset here)",
    ]
