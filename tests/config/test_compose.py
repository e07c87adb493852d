"""From words to a grid: what is shipped composes, axes multiply in order, and what cannot be run is one clear line."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml

from hyperbench.config import catalog
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, differing_keys, load
from hyperbench.config.overrides import parse
from tests.helpers.longbench_files import write
from tests.helpers.slow import slow

CPU_LENGTHS = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]
#: The inputs that need neither a file nor a function.
WITHOUT_A_FILE = [
    name for name, data in catalog.entries("input").items() if not {"path", "_target_"}.intersection(data)
]
CUDA_LENGTHS = [4096, 8192, 16_384, 32_768, 65_536, 131_072]

#: Sweeps over many settings, which measure one pass of each.
FORWARD_ALONE = {"alpha", "estimators", "recall", "tradeoff", "tune", "tune_causal"}


def choose(asked: str) -> tuple[str, str]:
    """A machine with a CPU alone."""
    return ("cpu", "there is nothing else") if asked == "auto" else (asked, "it was asked for")


def config_of(*words: str) -> RunConfig:
    """The configuration of some words on a machine with a CPU alone."""
    return load(words, choose)


def refusal(*words: str) -> str:
    """The one line with which words are refused."""
    with pytest.raises(ConfigError) as caught:
        config_of(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def data_of(sweep: str, folder: Path) -> list[str]:
    """The words that a sweep over files needs, with such files."""
    return [f"data={write(folder)}"] if sweep == "longbench" else []


def shapes(config: RunConfig, *names: str) -> list[tuple[Any, ...]]:
    """The method of every point and some of its fields, in order."""

    def value(point: Any, name: str) -> Any:
        return point.hyper.get(name, getattr(point, name, None))

    return [(point.method, *(value(point, name) for name in names)) for point in config.points]


@pytest.mark.parametrize("device", ["cpu", *slow("cuda")])
@pytest.mark.parametrize("sweep", catalog.names("sweep"))
def test_every_shipped_sweep_composes(sweep: str, device: str, tmp_path: Path) -> None:
    config = config_of(f"sweep={sweep}", f"device={device}", *data_of(sweep, tmp_path))
    lengths = CPU_LENGTHS if device == "cpu" else CUDA_LENGTHS
    # The written axes multiply; one of a method's parameters multiplies that method alone. Grids are put together.
    written, grids = (catalog.entries("sweep")[sweep].get(key, {}) for key in ("axes", "grids"))
    sizes = {key: len(lengths) if isinstance(values, str) else len(values) for key, values in written.items()}
    common = math.prod(size for key, size in sizes.items() if not key.startswith("method."))
    methods = {point.method for point in config.points}
    own = {m: math.prod(size for key, size in sizes.items() if key.startswith(f"method.{m}.")) for m in methods}
    axis = next((key for key in ("input.last", "input.layers") if key in written), None)
    if axis is not None:
        # Exact attention is the same whatever layers are patched, and no last layer is exact attention.
        patched = [layer for layer in written[axis] if layer or axis == "input.layers"]
        inputs = len({point.input for point in config.points}) if sweep == "longbench" else 1
        assert len(config.points) == inputs * common // len(written[axis]) * (1 + (len(methods) - 1) * len(patched))
    elif not grids:
        assert len(config.points) == common * sum(own.values())
    assert "hyper" in methods
    assert (config.sweep, config.device.name) == (sweep, device)
    assert {point.dtype for point in config.points} == {"float32" if device == "cpu" else "bfloat16"}
    if sweep in ("fig4", "seq_len", "stages"):
        assert sorted({point.seq_len for point in config.points}) == lengths
        assert {point.heads for point in config.points} == {1 if device == "cpu" else 12}
    if "is_causal" in written:
        assert {point.is_causal for point in config.points} == set(written["is_causal"])
    # The stages are those of a forward pass.
    assert config.stages == sweep.endswith("stages")
    backward = ("backward", "forward_backward")
    if config.stages or sweep.startswith("tune"):
        assert config.passes == ("forward",)
    elif sweep.startswith("gpu_"):
        assert config.passes == (backward if sweep.endswith("backward") else ("forward",))
    elif sweep not in FORWARD_ALONE:
        assert config.passes == ("forward", *backward)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("stages=maybe",), "stages=maybe must be true or false"),
        (("stages=1",), "stages=1 must be true or false"),
        (("stages=null",), "stages=None must be true or false"),
        (("stages=true,false",), "stages takes one value for a run"),
        (("stages=true", "passes=[backward]"), "stages=true needs the forward pass"),
        (("stage=true",), "did you mean 'stages'"),
    ],
)
def test_stages_are_asked_for_beside_a_forward_pass_or_not_at_all(words: tuple[str, ...], told: str) -> None:
    assert config_of("stages=true", "passes=[backward,forward]").stages
    assert not config_of("sweep=stages", "stages=false").stages
    assert told in refusal(*words)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", catalog.names("sweep"))
def test_a_resolved_configuration_is_plain_data_that_yaml_and_json_keep(sweep: str, tmp_path: Path) -> None:
    resolved = config_of(f"sweep={sweep}", *data_of(sweep, tmp_path)).resolved
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved
    assert json.loads(json.dumps(resolved)) == resolved
    assert "${" not in json.dumps(resolved)


def test_every_method_input_and_protocol_composes() -> None:
    methods, inputs = catalog.names("method"), WITHOUT_A_FILE
    config = config_of(f"method=[{','.join(methods)}]", f"input={','.join(inputs)}")
    found = [(point.input, point.method) for point in config.points]
    assert found == list(itertools.product(inputs, methods))
    assert {point.target for point in config.points} == set(config.targets)
    exact = config.exact_methods
    assert exact == {"flash2", "flash_attn", "math", "cudnn", "flex"}
    for protocol in catalog.names("protocol"):
        assert config_of(f"protocol={protocol}").protocol.name == protocol


def test_commas_make_a_grid_in_the_order_of_the_words() -> None:
    config = config_of("shape.seq_len=64,32", "is_causal=true,false", "seed=0,1")
    expected = [
        (method, n, causal, seed)
        for n, causal, seed, method in itertools.product((64, 32), (True, False), (0, 1), ("flash2", "hyper"))
    ]
    assert shapes(config, "seq_len", "is_causal", "seed") == expected


def test_the_parameters_of_a_method_multiply_that_method_alone() -> None:
    config = config_of("shape.seq_len=64,128", "method.hyper.block_size=8,16", "method.hyper.num_projections=3,4")
    assert shapes(config, "seq_len", "block_size", "num_projections") == [
        row
        for n in (64, 128)
        for row in [
            ("flash2", n, None, None),
            *(("hyper", n, b, r) for b, r in itertools.product((8, 16), (3, 4))),
        ]
    ]


def test_axes_of_a_sweep_can_be_replaced() -> None:
    assert shapes(config_of("sweep=fig4", "shape.seq_len=64"), "seq_len", "is_causal") == [
        (method, 64, is_causal) for is_causal in (False, True) for method in ("flash2", "hyper", "hyper_paper")
    ]
    for words in ("shape.seq_len=64,128", "shape.seq_len=[64,128]", "device.grid.seq_len=[64,128]"):
        config = config_of("sweep=fig4", words, "is_causal=true")
        assert [n for _, n in shapes(config, "seq_len")] == [64] * 3 + [128] * 3
    assert len(config_of("sweep=block_size", "method.hyper.block_size=64").points) == 2
    assert len(config_of("sweep=block_size", "is_causal=false,true").points) == 2 * 7


def test_equal_points_are_measured_once() -> None:
    assert len(config_of("shape.seq_len=64,64", "method=hyper,hyper").points) == 1


@pytest.mark.parametrize("words", ["method=[flash2,hyper]", "method=flash2,hyper"])
def test_methods_are_chosen_as_a_list_or_with_commas(words: str) -> None:
    assert shapes(config_of(words)) == [("flash2",), ("hyper",)]


@pytest.mark.parametrize("sweep", ["tradeoff", "patched_layers", "estimators"])
def test_of_a_sweep_that_sets_keys_of_other_methods_some_can_be_chosen(sweep: str) -> None:
    config = config_of(f"sweep={sweep}", "method=[flash2,uniform]")
    assert {point.method for point in config.points} == {"flash2", "uniform"}


def test_a_method_can_be_left_out() -> None:
    assert shapes(config_of("~method.flash2")) == [("hyper",)]


def test_a_method_from_outside_has_a_target_and_parameters() -> None:
    words = ("method=flash2", "+method.mine._target_=package.function", "+method.mine.rank=2,3")
    config = config_of(*words)
    assert shapes(config, "rank") == [("flash2", None), ("mine", 2), ("mine", 3)]
    mine = config.points[1]
    assert (mine.target, mine.hyper, config.exact_methods) == ("package.function", {"rank": 2}, {"flash2"})
    alone = config_of(*words[:2], "+method.mine.isolate=true")
    assert (alone.isolated_methods, alone.points[1].hyper) == ({"mine"}, {})
    exact = config_of(*words[:2], "+method.mine.exact=true")
    assert (exact.exact_methods, exact.points[1].hyper) == ({"flash2", "mine"}, {})


def test_several_inputs_are_an_axis() -> None:
    config = config_of("input=gaussian,clustered", "method=hyper", "shape.seq_len=4,8")
    assert shapes(config, "input", "seq_len") == [
        ("hyper", "gaussian", 4), ("hyper", "gaussian", 8), ("hyper", "clustered", 4), ("hyper", "clustered", 8),
    ]  # fmt: skip
    assert config.points[0].input_params == {"std": 1.0}
    assert set(config.points[2].input_params) == {"num_clusters", "center_std", "noise_std"}
    stds = config_of("input.std=1,2", "method=hyper")
    assert [point.input_params for point in stds.points] == [{"std": 1}, {"std": 2}]


def test_the_seed_of_a_method_follows_that_of_the_inputs_unless_set() -> None:
    assert shapes(config_of("seed=3,4", "method=hyper"), "seed") == [("hyper", 3), ("hyper", 4)]
    assert [point.hyper["seed"] for point in config_of("seed=3,4", "method=hyper").points] == [3, 4]
    assert [p.hyper["seed"] for p in config_of("seed=3", "method=hyper", "method.hyper.seed=5").points] == [5]


def test_lists_stay_lists() -> None:
    for words in ("error.seeds=[4,5]", "error.seeds=4,5"):
        config = config_of(words)
        assert config.error.seeds == (4, 5)
        assert len(config.points) == 2
    assert config_of("error.seeds=4").error.seeds == (4,)
    for words in ("passes=[backward,forward]", "passes=backward,forward"):
        assert config_of(words).passes == ("forward", "backward")
    assert config_of("passes=backward").passes == ("backward",)


def test_heads_of_keys_follow_those_of_queries() -> None:
    config = config_of("shape.heads=4,8", "method=hyper")
    assert shapes(config, "heads", "kv_heads") == [("hyper", 4, 4), ("hyper", 8, 8)]
    assert shapes(config_of("shape.heads=4", "shape.kv_heads=1,2", "method=hyper"), "kv_heads") == [
        ("hyper", 1),
        ("hyper", 2),
    ]


def test_out_is_taken_as_it_stands() -> None:
    assert config_of("out=a folder, with [odd] {signs}").out == Path("a folder, with [odd] {signs}")
    assert config_of().out is None


def test_gpu_is_another_word_for_cuda() -> None:
    config = load(["device=gpu"], lambda asked: (asked, ""))
    assert config.device.name == "cuda"


def test_the_device_and_its_reason_are_those_chosen() -> None:
    config = config_of()
    assert (config.device.name, config.device.reason) == ("cpu", "there is nothing else")
    assert all(isinstance(value, str) for value in config.device.env.values())
    assert config_of("device=cuda").device.reason == "it was asked for"

    def none(asked: str) -> tuple[str, str]:
        raise ConfigError(f"device={asked}: none here")

    with pytest.raises(ConfigError, match="device=cuda: none here"):
        load(["device=cuda"], none)


def test_the_same_words_give_the_same_configuration() -> None:
    words = ("sweep=fig4", "method=[hyper,math]", "seed=3")
    one, other = config_of(*words), config_of(*words)
    assert one == other
    assert one.config_hash == other.config_hash
    assert one.config_hash != config_of(*words[:2], "seed=4").config_hash
    # Where a run is kept is no part of what is measured.
    assert one.config_hash == config_of(*words, "out=elsewhere").config_hash


def test_what_differs_is_named() -> None:
    base = config_of().resolved
    assert differing_keys(base, base) == []
    assert differing_keys(base, config_of("error.rows=7").resolved) == ["error.rows"]
    assert "sweep.axes.shape.seq_len" in differing_keys(base, config_of("shape.seq_len=1,2").resolved)
    assert "method.math.exact" in differing_keys(base, config_of("method=math").resolved)
    assert "protocol.name" in differing_keys(base, config_of("protocol=quick").resolved)
    assert "a.b" in differing_keys({"a": {"b": 1}}, {"a": {}})
    assert differing_keys({"a": None}, {}) == ["a"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # Unknown names, with the nearest one.
        ("sweep=fig5", ["sweep=fig5", "did you mean 'fig4'?"]),
        ("method=hypr", ["method=hypr", "did you mean 'hyper'?"]),
        ("method=[flash2,flsh_attn]", ["method=flsh_attn", "did you mean 'flash_attn'?"]),
        ("input=gausian", ["input=gausian", "did you mean 'gaussian'?"]),
        ("protocol=strikt", ["protocol=strikt", "did you mean 'strict'?"]),
        ("device=gpus", ["device=gpus", "allowed: auto, cpu, cuda"]),
        ("dtype=float33", ["dtype=float33", "did you mean 'float32'?"]),
        ("passes=foward", ["passes=foward", "did you mean 'forward'?"]),
        ("seq_len=5", ["'seq_len'", "did you mean 'shape.seq_len'?"]),
        ("shape.seqlen=5", ["'shape.seqlen'", "did you mean 'shape.seq_len'?"]),
        ("method.hyper.blok_size=5", ["'method.hyper.blok_size'", "did you mean 'method.hyper.block_size'?"]),
        ("method.hypr.block_size=5", ["'method.hypr.block_size'", "did you mean 'method.hyper.block_size'?"]),
        ("method.math.block_size=5", ["method.math.block_size"]),
        ("+shape.seqlen=5", ["'shape.seqlen'", "did you mean 'shape.seq_len'?"]),
        ("+colour=blue", ["nothing reads the key 'colour'"]),
        ("+protocol.budget_s.sideways=1", ["sideways", "forward, backward, forward_backward"]),
        ("+error.row=1", ["row", "did you mean 'rows'?"]),
        # Sizes.
        ("shape.seq_len=0", ["shape.seq_len=0 must be an integer of at least 1"]),
        ("shape.batch=-2", ["shape.batch=-2 must be an integer of at least 1"]),
        ("shape.head_dim=1.5", ["shape.head_dim=1.5 must be an integer of at least 1"]),
        ("shape.heads=true", ["shape.heads=True must be an integer of at least 1"]),
        ("shape.seq_len=1e3", ["shape.seq_len=1000.0 must be an integer of at least 1"]),
        ("shape.seq_len=8,zero", ["shape.seq_len=zero must be an integer of at least 1"]),
        ("shape.seq_len='8'", ["shape.seq_len=8 must be an integer"]),
        ("shape.seq_len=null", ["shape.seq_len=None must be an integer"]),
        ("shape.seq_len=", ["shape.seq_len= must be an integer"]),
        ("shape.seq_len={a:1}", ["shape.seq_len={'a': 1} must be an integer"]),
        (f"shape.seq_len={10**30}", [f"shape.seq_len={10**30} must be an integer of at most"]),
        (f"seed={2**63}", [f"seed={2**63} must be an integer of at most {2**63 - 1}"]),
        ("seed=-1", ["seed=-1 must be an integer of at least 0"]),
        ("method.hyper.block_size=0", ["method.hyper.block_size=0 must be an integer of at least 1"]),
        ("method.hyper.sample_size=-4", ["method.hyper.sample_size=-4 must be an integer of at least 1"]),
        ("method.hyper.block_size=16,x", ["method.hyper.block_size=x must be an integer of at least 1"]),
        ("method.hyper.sampling=3", ["method.hyper.sampling=3 must be text"]),
        ("method.hyper.seed=-1", ["method.hyper.seed=-1 must be an integer of at least 0"]),
        ("shape.heads=6 shape.kv_heads=4", ["shape.kv_heads=4 must divide shape.heads=6"]),
        ("shape.heads=4,6 shape.kv_heads=4", ["shape.kv_heads=4 must divide shape.heads=6"]),
        # Types and lists.
        ("is_causal=both", ["is_causal=both must be true or false"]),
        ("is_causal=1", ["is_causal=1 must be true or false"]),
        ("+method.flash2.isolate=maybe", ["method.flash2.isolate=maybe must be true or false"]),
        ("method.flash2.exact=maybe", ["method.flash2.exact=maybe must be true or false"]),
        ("device.threads=0", ["device.threads=0 must be a positive integer or null"]),
        ("device.dtypes=3", ["device.dtypes=3 must be a list"]),
        ("device.dtypes=[int8]", ["device.dtypes=int8", "allowed: float64"]),
        ("protocol.name=3", ["protocol.name=3 must be text"]),
        ("shape.seq_len=[]", ["shape.seq_len=[] is empty"]),
        ("device.grid.seq_len=[] sweep=fig4", ["shape.seq_len=[] is empty"]),
        ("error.seeds=[]", ["error.seeds=[] must be a list of at least one seed"]),
        ("error.seeds=[1,1]", ["error.seeds=[1, 1] names a seed twice"]),
        ("passes=[]", ["passes=[] must name at least one of forward"]),
        ("method=[]", ["'method=[]' names no method", "flash2"]),
        ("input=[]", ["'input=[]' names no input", "gaussian"]),
        ("shape=3", ["shape=3 must be a mapping", "shape.seq_len"]),
        ("shape=null", ["shape=null must be a mapping"]),
        ("error=3", ["error=3 must be a mapping"]),
        ("method.hyper=3", ["method.hyper=3 must be a mapping"]),
        ("device.env=3", ["device.env=3 must be a mapping"]),
        ("sweep.axes=3", ["sweep.axes=3 must be a mapping"]),
        ("protocol.budget_s=3", ["protocol.budget_s=3 must be a mapping"]),
        # Axes that are none.
        ("shape.seq_len=range(1,3)", ["'shape.seq_len=range(1,3)'", "shape.seq_len=1,2,4"]),
        ("shape.seq_len=interval(1,3)", ["'shape.seq_len=interval(1,3)'"]),
        ("shape.seq_len=glob(*)", ["'shape.seq_len=glob(*)'"]),
        ("protocol.rounds=1,2", ["protocol.rounds takes one value for a run"]),
        ("device.grid.seq_len=8,16", ["device.grid.seq_len takes one value for a run"]),
        ("sweep=fig4,smoke", ["sweep=fig4,smoke: a run has one sweep"]),
        ("device=cpu,cuda", ["device=cpu,cuda: a run has one device"]),
        ("protocol=quick,strict", ["protocol=quick,strict: a run has one protocol"]),
        ("+sweep.axes.colour=[1]", ["colour takes one value"]),
        ("sweep=block_size method=math", ["method.hyper.block_size is swept", "hyper", "(math)"]),
        ("input=clustered,clustered_values input.num_clusters=1,2", ["input.num_clusters cannot be swept together"]),
        # Keys that are given twice.
        ("shape.seq_len=8 shape.seq_len=16", [
            "shape.seq_len is given twice, by 'shape.seq_len=8' and 'shape.seq_len=16'; leave one out",
            "several values are shape.seq_len=A,B",
        ]),
        ("shape.seq_len=8,16 +shape.seq_len=8", ["shape.seq_len is given twice"]),
        ("sweep=fig4 sweep=smoke", ["sweep is given twice, by 'sweep=fig4' and 'sweep=smoke'"]),
        ("method=math method=[hyper]", ["method is given twice"]),
        ("error.seeds=1 error.seeds=2", ["error.seeds is given twice"]),
        ("out=a out=b", ["out is given twice, by 'out=a' and 'out=b'; leave one out"]),
        # Words that mean nothing here.
        ("+out=a", ["'+out=a': name the folder by out=DIR"]),
        ("out=~nobody_of_that_name/run", ["'~nobody_of_that_name/run': there is no home folder ~nobody_of_that_name"]),
        ("method=[math,mine] +method.mine._target_=mine.attention", [
            "'method=[math,mine]': leave mine out of the list, '+method.mine._target_=mine.attention' adds it",
        ]),
        ("fig4", ["'fig4' is no override (KEY=VALUE or KEY=A,B)"]),
        ("--dry", ["'--dry' is no override"]),
        ("a=b=c", ["'a=b=c' is no override"]),
        ("=3", ["unknown key ''"]),
        ("out=", ["out= names no folder"]),
        ("+method=math", ["'+method=math': choose a method by method=NAME"]),
        ("method@other=math", ["@other has no meaning here"]),
        ("~method", ["'~method': only a method can be left out"]),
        ("~shape.seq_len", ["'~shape.seq_len': only a method can be left out"]),
        ("~error", ["'~error': only a method can be left out"]),
        ("~method.hyper ~method.flash2", ["no method is left"]),
        ("+method.mine.rank=3", ["method.mine has no _target_", "+method.mine._target_=package.function"]),
        ("method.hyper._target_=null", ["method.hyper has no _target_"]),
        ("shape.seq_len=${colour}", ["colour"]),
        ("seed=${seed}", ["seed"]),
        ("hydra.run.dir=x", ["'hydra.run.dir'"]),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line_that_names_key_and_value(words: str, parts: list[str]) -> None:
    message = refusal(*words.split())
    for part in parts:
        assert part in message


def test_hydra_composes_once_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    compose = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *words: composed.append(words) or compose(*words))  # type: ignore[func-returns-value]
    inputs = ",".join(WITHOUT_A_FILE)
    config = config_of("sweep=smoke", f"input={inputs}", "method=[hyper,math]", "shape.seq_len=8,16", "+input.more=1")
    assert len(composed) == 1
    assert {point.input for point in config.points} == set(inputs.split(","))
    assert all(point.input_params["more"] == 1 for point in config.points)
    for point in config.points:
        written = catalog.entries("input")[point.input]
        assert point.input_params == {**{k: written[k] for k in written if k not in ("name", "description")}, "more": 1}


def test_a_refusal_leaves_hydra_as_it_was() -> None:
    from hydra.core.global_hydra import GlobalHydra

    for words in ("seq_len=5", "shape.seq_len=0", "shape.seq_len=${colour}", "+shape.seq_len=5", "fig4"):
        refusal(words)
        assert not GlobalHydra.instance().is_initialized()
        assert len(config_of().points) == 2


@pytest.mark.parametrize(
    ("words", "settings", "axes", "fixed"),
    [
        (["a.b=1,2"], [("", "a.b", 1)], {"a.b": [1, 2]}, {}),
        (["a.b=x"], [("", "a.b", "x")], {}, {"a.b": "x"}),
        (["+a.b=true,null"], [("+", "a.b", True)], {"a.b": [True, None]}, {}),
        (["++a.b=1.5,x"], [("++", "a.b", 1.5)], {"a.b": [1.5, "x"]}, {}),
        (["a.b='x,y','z'"], [("", "a.b", "x,y")], {"a.b": ["x,y", "z"]}, {}),
        (["a.b=[1,2]"], [("", "a.b", [1, 2])], {}, {"a.b": [1, 2]}),
        (["a.b=choice(1,2)"], [("", "a.b", 1)], {"a.b": [1, 2]}, {}),
    ],
)
def test_words_are_read_as_hydra_reads_them(
    words: list[str], settings: list[tuple[str, str, Any]], axes: dict[str, Any], fixed: dict[str, Any]
) -> None:
    found = parse(words)
    assert [(s.action, s.key, s.value) for s in found.settings] == settings
    assert (found.axes, found.fixed) == (axes, fixed)


@pytest.mark.parametrize("name", catalog.names("protocol"))
def test_what_a_gpu_needs_more_of_comes_with_the_device(name: str) -> None:
    cpu, cuda = (config_of(f"protocol={name}", f"device={device}").protocol for device in ("cpu", "cuda"))
    if not cuda.as_paper:
        assert cuda.warmup_min_s >= max(0.2, cpu.warmup_min_s)
    # Three tensors of the longest point of its grid, in bfloat16, as often as copies are wanted.
    assert cuda.input_copies_bytes >= cuda.input_copies * 3 * 12 * 131072 * 64 * 2
    chosen = config_of(f"protocol={name}", "device=cuda", "protocol.input_copies_bytes=5").protocol
    assert chosen.input_copies_bytes == 5


def test_protocols_differ_in_what_they_are_for() -> None:
    found = {name: config_of(f"protocol={name}").protocol for name in catalog.names("protocol")}
    assert set(found) == {"quick", "standard", "strict", "sustained", "paper"}
    assert config_of().protocol == found["standard"]
    assert (found["quick"].rounds, found["standard"].rounds) == (1, 3)
    assert found["strict"].rounds >= 5
    assert [name for name, protocol in found.items() if protocol.fixed_time] == ["paper", "sustained"]
    assert [name for name, protocol in found.items() if protocol.as_paper] == ["paper"]
    # Load of other methods between the samples would be a pause of this one's.
    assert found["sustained"].slices == 1
    # Ten seconds of load come first, however slow a call is.
    assert found["sustained"].skip_warmup_above_s >= found["sustained"].warmup_min_s >= 10.0
    assert found["sustained"].keep_first_above_s > 1e6
    for protocol in (found["standard"], found["strict"]):
        slow_s, quick_s = protocol.budget_s["forward"] + 0.1, protocol.budget_s["forward"] - 0.1
        assert protocol.rounds_for("forward", slow_s) == protocol.slow_rounds < protocol.rounds
        assert protocol.rounds_for("forward", quick_s) == protocol.rounds


def test_a_configuration_file_that_grows_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(catalog.conf_dir(), conf)
    monkeypatch.setattr(catalog, "conf_dir", lambda: conf)
    grows = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    (conf / "sweep" / "mine.yaml").write_text(f"a0: &a0 [x, x]\n{grows}")
    with pytest.raises(ConfigError, match=r"mine\.yaml is damaged: its aliases make it endless"):
        load(["sweep=mine"], lambda name: ("cpu", ""))
