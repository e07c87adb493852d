"""Run folders: what was written is read again, what was torn is dropped, what is damaged is refused in one line."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperbench.stats.samples import summarise
from hyperbench.store import run_folder
from hyperbench.store.environment import sealed
from hyperbench.store.files import DamageWarning, StoreError, atomic_write
from hyperbench.store.journal import read_journal
from hyperbench.store.journal_lines import header_of
from hyperbench.store.record_json import to_json
from hyperbench.store.run_folder import load_run, write_tables
from hyperbench.store.schema import ALL_STAGES, SCHEMA_VERSION, ErrorRow, Record, Status, StopReason
from tests.helpers.made_records import a_point, a_stage, a_timing, records

POINT_COLUMNS = [
    "run_id", "point_id", "method", "implementation", "device", "dtype", "is_causal", "batch", "heads", "kv_heads",
    "seq_len", "head_dim", "block_size", "sample_size", "num_projections", "min_seq_len", "sampling", "pairing",
    "input",
]  # fmt: skip
DOCUMENTED = {
    "timings": [
        *POINT_COLUMNS, "seed", "pass", "stage", "position", "num_stages", "protocol", "round", "status", "stop_reason",
        "n_samples", "median_ms", "ci_low_ms", "ci_high_ms", "p20_ms", "p80_ms", "min_ms", "mad_ms", "first_call_ms",
        "setup_ms", "host_ms", "memory_before_bytes", "peak_memory_bytes", "resident_peak_bytes",
        "exact_equivalent_flops", "executed_flops", "flags", "threads", "affinity", "machine", "torch", "message",
    ],
    "errors": [*POINT_COLUMNS, "input_seed", "seed", "metric", "value", "low", "high", "status", "message"],
}  # fmt: skip
WHOLE = {"batch", "heads", "kv_heads", "seq_len", "head_dim", "seed", "input_seed", "round", "n_samples"}
WHOLE_OR_NULL = {
    "block_size",
    "sample_size",
    "num_projections",
    "min_seq_len",
    "memory_before_bytes",
    "peak_memory_bytes",
    "resident_peak_bytes",
    "position",
    "num_stages",
    "threads",
}
NUMBERS = {"value", "low", "high", "exact_equivalent_flops", "executed_flops"}
SOME: list[Record] = [
    a_timing(),
    a_timing(a_point(hyper={}), status=Status.OOM, samples_ms=(), stop_reason=None, message='no "memory", sorry'),
    ErrorRow(a_point(), 3, "out_rel_fro", float("inf")),
    # As journals of the first version of the schema have it.
    a_stage(a_point(), "hash", 0.25),
]  # fmt: skip


def line_of(record: Record) -> bytes:
    """A record as it stands in a journal."""
    return json.dumps(to_json(record)).encode() + b"\n"


def make_run(
    folder: Path,
    journal: bytes,
    environment: bytes = b'{"run_id": "r1", "schema_version": 1}',
    config: bytes = b"a: 1\n",
) -> Path:
    """A run's folder of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / run_folder.CONFIG).write_bytes(config)
    (folder / run_folder.ENVIRONMENT).write_bytes(environment)
    (folder / run_folder.JOURNAL).write_bytes(journal)
    return folder


def damage_told(folder: Path) -> str:
    """The one line that says which lines of a run's journal are left out."""
    with pytest.warns(DamageWarning) as told:
        load_run(folder)
    (message,) = {str(warning.message) for warning in told}
    assert "\n" not in message
    return message


def refusal(folder: Path) -> str:
    """The one line with which a run's folder is refused."""
    with pytest.raises(StoreError) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DAMAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"NaN",
    b"1" * 5000,
    b"\xff\xfe{}",
    b'{"kind": "\xc3\x28"}',
    b"\x00\x00",
    b"[" * 100_000,
    b'{"kind":' * 50_000,
    b'{"kind": "timing"}',
    b'{"kind": ["timing"]}',
    b'{"kind": "timing", "point": 3}',
    b'[["kind", "timing"]]',
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_damage_costs_its_line_and_is_told(tmp_path: Path, damage: bytes, place: int) -> None:
    lines = [line_of(SOME[0]), line_of(SOME[2])]
    lines.insert(place, damage + b"\n")
    folder = make_run(tmp_path / "run", b"".join(lines))
    message = damage_told(folder)
    assert message.startswith(f"{folder / run_folder.JOURNAL} is damaged; what is left out: line {place + 1}: damaged ")
    with pytest.warns(DamageWarning):
        assert read_journal(folder / run_folder.JOURNAL) == [SOME[0], SOME[2]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples_ms", "abc"),
        ("samples_ms", "123"),
        ("samples_ms", [[1.0]]),
        ("point", 3),
        ("round", "x"),
        ("peak_memory_bytes", 0.5),
        ("executed_flops", "fast"),
        ("status", 1),
        ("pass_", "sideways"),
        ("message", {}),
    ],
)
def test_a_wrong_type_is_refused_when_read(tmp_path: Path, name: str, value: Any) -> None:
    line = json.dumps({**to_json(SOME[0]), name: value}).encode() + b"\n"
    assert "line 2: damaged record" in damage_told(make_run(tmp_path / "run", line_of(SOME[2]) + line))


@pytest.mark.parametrize(("name", "value"), [("seq_len", "x"), ("seq_len", 10**30), ("hyper", {"block_size": "x"})])
def test_a_wrong_type_in_a_point_is_refused_when_read(tmp_path: Path, name: str, value: Any) -> None:
    good = to_json(SOME[0])
    line = json.dumps({**good, "point": {**good["point"], name: value}}).encode() + b"\n"
    assert "line 1: damaged record" in damage_told(make_run(tmp_path / "run", line))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "there is no run folder" in refusal(tmp_path / "missing")
    assert "there is no run folder" in refusal(tmp_path / ("long" * 100))
    assert "has no config.yaml, environment.json, journal.jsonl" in refusal(tmp_path)
    folder = make_run(tmp_path / "run", b"")
    (folder / run_folder.JOURNAL).unlink()
    assert "has no journal.jsonl" in refusal(folder)


@pytest.mark.parametrize(
    "config",
    [
        b"[1, 2]",
        b"",
        b"a: [",
        b"\xff\xfe\xff",
        b"a: \x00",
        b"a: !!timestamp x",
        b"a: !!bool x",
        b"a: 2020-13-45",
        b"? [1]\n: 2",
        b"--- a\n--- b",
        b"[" * 100_000,
        b"{a: " * 100_000,
        b"- " * 100_000,
    ],
    ids=range(13),
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: bytes) -> None:
    folder = make_run(tmp_path / "run", b"", config=config)
    assert refusal(folder).startswith(f"{folder / run_folder.CONFIG} is damaged: ")


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "merge keys": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
    "itself": "a: &a [*a]\n",
    "itself, merged": "a: &a {<<: *a}\n",
    "length": "a: " + "x" * 2**21,
}


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_a_configuration_that_grows_without_end_is_refused_within_a_moment(bomb: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", b"", config=BOMBS[bomb].encode())
    signal.alarm(20)
    assert refusal(folder).startswith(f"{folder / run_folder.CONFIG} is damaged: it")
    signal.alarm(0)


def test_a_configuration_may_repeat_itself(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", b"", config=b"a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    assert load_run(folder).config == {"a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": {"x": [1, 2], "y": 3}}


@pytest.mark.parametrize("call", ["os.system", "subprocess.check_call"])
def test_a_configuration_runs_nothing(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "it-ran"
    config = f"a: !!python/object/apply:{call} ['touch {marker}']\n"
    folder = make_run(tmp_path / "run", b"", config=config.encode())
    assert "is damaged" in refusal(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "environment",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"a":' * 100_000,
        b'{"run_id": 3}',
        b'{"cpu_count": "two"}',
        b'{"cpu_count": -1}',
        b'{"dirty": 1}',
        b'{"machine": ["x"]}',
        b'{"env_vars": "OMP=1"}',
    ],
    ids=range(11),
)
def test_a_damaged_environment_is_refused(tmp_path: Path, environment: bytes) -> None:
    folder = make_run(tmp_path / "run", b"", environment=environment)
    assert refusal(folder).startswith(f"{folder / run_folder.ENVIRONMENT} is damaged: ")


def test_an_environment_of_a_newer_version_is_refused_as_newer(tmp_path: Path) -> None:
    environment = json.dumps({"schema_version": SCHEMA_VERSION + 1}).encode()
    assert "made by a newer hyperbench" in refusal(make_run(tmp_path / "run", b"", environment=environment))


def test_the_journal_of_another_run_is_not_read_as_that_of_this_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", header_of("r2") + line_of(SOME[0]))
    assert (
        refusal(folder) == f"{folder / 'journal.jsonl'} is the journal of run r2, not of run r1 as the files beside it"
    )


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", line_of(SOME[0]))
    (tmp_path / "precious").write_text("years of work")
    (folder / "timings.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"cannot write the tables of .*: a symbolic link is in its place"):
        write_tables(folder)
    # Not even where a temporary file is expected.
    (folder / "timings.csv").unlink()
    (folder / f".timings.csv.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_tables(folder)
    assert (tmp_path / "precious").read_text() == "years of work"


def test_a_link_in_the_place_of_a_folder_of_a_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="figures is a symbolic link, and nothing is written through one"):
        run_folder.made_folder(tmp_path / "run", "figures")
    assert run_folder.made_folder(tmp_path / "run", "export") == tmp_path / "run" / "export"


def test_an_environment_of_another_version_is_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", line_of(SOME[0]), environment=b'{"run_id": null, "colour": "blue"}')
    run = load_run(folder)
    assert run.environment["colour"] == "blue"
    assert list(run.timings["run_id"]) == ["run"]


def test_tables_have_the_documented_columns_and_types(tmp_path: Path) -> None:
    for journal, of_inputs in ((b"", []), (b"".join(map(line_of, SOME)), ["input.std"])):
        run = load_run(make_run(tmp_path / "run", journal))
        for table, columns in DOCUMENTED.items():
            frame: pd.DataFrame = getattr(run, table)
            place = columns.index("input") + 1
            assert list(frame.columns) == [*columns[:place], *of_inputs, *columns[place:]]
            for name, dtype in frame.dtypes.items():
                if name in of_inputs:
                    assert dtype == "float64"
                elif name in WHOLE:
                    assert dtype == "int64"
                elif name in WHOLE_OR_NULL:
                    assert dtype == "Int64"
                elif name in NUMBERS or str(name).endswith("_ms"):
                    assert dtype == "float64"
                else:
                    assert dtype == ("bool" if name == "is_causal" else "object")


def test_the_tables_say_what_the_records_say(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", b"".join(map(line_of, SOME))))
    timing = a_timing()
    row, failed = run.passes.to_dict("records")
    assert len(run.timings) == 3
    assert (row["run_id"], row["point_id"]) == ("r1", timing.point.point_id)
    statistics = summarise(timing.samples_ms)
    assert all(row[name] == getattr(statistics, name) for name in ("n_samples", "median_ms", "ci_low_ms", "mad_ms"))
    assert (row["block_size"], row["sampling"], row["pairing"]) == (256, "stratified", None)
    assert (row["stage"], pd.isna(row["position"]), pd.isna(row["num_stages"])) == ("", True, True)
    assert (row["pass"], row["status"], row["stop_reason"]) == ("forward", "ok", "precision")
    assert (failed["status"], failed["n_samples"], failed["message"]) == ("oom", 0, 'no "memory", sorry')
    assert pd.isna(failed["median_ms"])
    assert pd.isna(failed["block_size"])
    error, stage = run.errors.to_dict("records")[0], run.stages.to_dict("records")[0]
    assert (error["metric"], error["value"], error["seed"], error["input_seed"]) == ("out_rel_fro", float("inf"), 3, 0)
    assert (stage["stage"], stage["median_ms"], stage["n_samples"], stage["status"]) == ("hash", 0.25, 1, "ok")
    # Errors and stages tell which code it was, as far as a timing of the point told it.
    assert error["implementation"] == stage["implementation"] == "some-kernel"


def test_inputs_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    draws: list[dict[str, Any]] = [{"slope": 0.0, "std": 1.0}, {"slope": 2.0, "std": 1.0}]
    records = [*(a_timing(a_point(input="ramp", input_params=draw)) for draw in draws), a_timing(a_point())]
    run = load_run(make_run(tmp_path / "run", b"".join(map(line_of, records))))
    assert list(run.timings["input"]) == ["ramp slope=0.0", "ramp slope=2.0", a_point().input]


def test_a_stage_has_its_place_its_samples_and_its_rounds(tmp_path: Path) -> None:
    names = ("hash", "sort")
    rows = [
        a_stage(a_point(), "sort", 1.0, 2.0, 4.0, all_stages=names, stop_reason=StopReason.BUDGET),
        a_stage(a_point(), "sort", 3.0, all_stages=names, round=1),
        a_stage(a_point(), "hash", all_stages=names, status=Status.OOM, message="no memory"),
    ]
    run = load_run(make_run(tmp_path / "run", b"".join(map(line_of, rows))))
    sort, again, hashed = run.stages.to_dict("records")
    assert (sort["position"], sort["num_stages"], sort["round"], again["round"]) == (1, 2, 0, 1)
    assert (sort["n_samples"], sort["median_ms"], sort["ci_low_ms"], sort["ci_high_ms"]) == (3, 2.0, 1.0, 4.0)
    assert (sort["protocol"], sort["stop_reason"]) == ("strict", "budget")
    assert (hashed["status"], hashed["message"]) == ("oom", "no memory")
    assert pd.isna(hashed["median_ms"])


def test_a_stage_that_was_timed_after_all_takes_the_place_of_the_row_for_all(tmp_path: Path) -> None:
    lost = a_stage(a_point(), ALL_STAGES, status=Status.TIMEOUT, message="slow")
    timed = a_stage(a_point(), "hash", 1.0, all_stages=("hash",))
    other = a_stage(a_point(seq_len=7), ALL_STAGES, status=Status.TIMEOUT, message="slow")
    run = load_run(make_run(tmp_path / "run", b"".join(map(line_of, [lost, other, timed]))))
    assert list(zip(run.stages["seq_len"], run.stages["stage"], strict=True)) == [(7, ALL_STAGES), (1024, "hash")]


def test_the_last_record_of_a_measurement_counts(tmp_path: Path) -> None:
    first = a_timing(status=Status.TIMEOUT, samples_ms=(), stop_reason=None, message="slow")
    last = a_timing(samples_ms=(4.0,))
    other_round = a_timing(round=1)
    rows = [first, ErrorRow(a_point(), 0, "m", 1.0), last, other_round, ErrorRow(a_point(), 0, "m", 2.0)]
    run = load_run(make_run(tmp_path / "run", b"".join(map(line_of, rows))))
    assert list(run.timings["status"]) == ["ok", "ok"]
    assert list(run.timings["median_ms"]) == [4.0, 1.5]
    assert list(run.errors["value"]) == [2.0]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(records(), max_size=4))
def test_tables_on_disk_agree_and_can_be_made_again(written: list[Record], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", b"".join(map(line_of, written)))
    write_tables(folder)
    run = load_run(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for table in DOCUMENTED:
        frame: pd.DataFrame = getattr(run, table)
        kept = pd.read_parquet(folder / f"{table}.parquet")
        assert list(kept.columns) == list(frame.columns)
        for name in frame.columns:
            assert [None if pd.isna(v) else v for v in kept[name]] == [None if pd.isna(v) else v for v in frame[name]]
        (folder / f"{table}.parquet").unlink()
    write_tables(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_csv_and_parquet_agree(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", b"".join(map(line_of, SOME)))
    write_tables(folder)
    for table in DOCUMENTED:
        one, other = pd.read_csv(folder / f"{table}.csv"), pd.read_parquet(folder / f"{table}.parquet")
        assert list(one.columns) == list(other.columns)
        for name in one.columns:
            # A CSV cannot tell an empty text from none.
            left, right = ([None if pd.isna(v) or v == "" else v for v in frame[name]] for frame in (one, other))
            assert left == right


def test_empty_tables_keep_their_types(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, dict[str, pa.DataType]]] = {}
    for name, journal in (("empty", b""), ("full", b"".join(map(line_of, SOME)))):
        folder = make_run(tmp_path / name, journal)
        write_tables(folder)
        schemas = {table: pq.read_schema(folder / f"{table}.parquet") for table in DOCUMENTED}
        kinds[name] = {table: dict(zip(schema.names, schema.types, strict=True)) for table, schema in schemas.items()}
    for table, columns in DOCUMENTED.items():
        assert list(kinds["empty"][table]) == columns
        assert all(kinds["full"][table][column] == kind for column, kind in kinds["empty"][table].items())
        assert pa.null() not in kinds["full"][table].values()


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        temporary.write_text("new")

    atomic_write(path, write)
    assert path.read_text() == "new"

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "new"


def test_the_newest_run_is_the_one_whose_journal_was_written_last(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no run under .*sweep=smoke"):
        run_folder.latest_run(tmp_path / "missing")
    folders = [make_run(tmp_path / name, b"") for name in ("b", "c", "a")]
    for age, folder in enumerate(folders):
        os.utime(folder / run_folder.JOURNAL, ns=(10**18, 10**18 - age))
    assert run_folder.latest_run(tmp_path) == folders[0]
    os.utime(folders[1] / run_folder.JOURNAL, ns=(10**18, 10**18 + 1))
    assert run_folder.latest_run(tmp_path) == folders[1]
    (folders[1] / run_folder.CONFIG).unlink()
    assert run_folder.latest_run(tmp_path) == folders[0]
    assert not run_folder.is_run_folder(folders[1])


def test_a_configuration_or_an_environment_that_was_changed_is_told(tmp_path: Path) -> None:
    values = {"run_id": "r1", "config_hash": run_folder.config_hash({"a": 1}), "threads": 2}
    whole = json.dumps(sealed(values)).encode()
    folder = make_run(tmp_path / "run", line_of(SOME[0]), environment=whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(folder).environment == values
    make_run(folder, line_of(SOME[0]), environment=whole.replace(b'"threads": 2', b'"threads": 3'))
    assert damage_told(folder).endswith("environment.json is not as it was written: its checksum is another")
    make_run(folder, line_of(SOME[0]), environment=whole.replace(b'"crc32"', b'"crg32"'))
    assert damage_told(folder).endswith("environment.json is not as it was written: it has no checksum")
    make_run(folder, line_of(SOME[0]), environment=whole, config=b"a: 2\n")
    assert damage_told(folder).endswith(
        "config.yaml is not as it was written: environment.json has another config_hash"
    )
