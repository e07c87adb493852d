"""Records of scores of language models, made by hand: LongBench by groups, and one layer at a time."""

from __future__ import annotations

from hyperbench.store.schema import ErrorRow, Point, Record

#: Dataset -> the scores of its examples by exact attention. The means of the groups are 40, 30, 20, 60, 10 and 60.
LONGBENCH = {
    "qasper": (30.0, 50.0, 40.0),
    "hotpotqa": (0.0, 40.0, 20.0),
    "musique": (40.0, 40.0, 40.0),
    "gov_report": (20.0, 22.0, 18.0),
    "trec": (0.0, 100.0, 80.0),
    "passage_count": (10.0, 20.0, 0.0),
    "lcc": (70.0, 50.0, 60.0),
}


def point(method: str, task: str, layers: str = "", seq_len: int = 8192, **more: object) -> Point:
    """A point of a task on a model of 30 layers."""
    params = {"task": "package.task", "model": "tiny", "model_layers": 30, "metrics": ["score"], **more}
    hyper = {"layers": layers} if layers else {}
    return Point(method, f"p.{method}", "cpu", "float32", True, 1, 9, 3, seq_len, 64, task, 0, hyper, params)


def longbench(seq_lens: tuple[int, ...] = (8192,)) -> list[Record]:
    """Exact attention, and a method that loses ten points in seven layers and half of them in all."""
    found: list[Record] = []
    for n in seq_lens:
        for method, layers, left in (
            ("flash2", "", lambda x: x),
            ("hyper", "last 7", lambda x: x - 10),
            ("hyper", "last 30", lambda x: x / 2),
        ):
            for name, values in LONGBENCH.items():
                of = point(method, f"longbench/{name}", layers, n, dataset=name, data="folder")
                found += [ErrorRow(of, i, "score", left(value), message="answer: x") for i, value in enumerate(values)]
                found += [ErrorRow(of, i, "prompt_tokens", 100.0) for i in range(len(values))]
    return found


def one_layer_at_a_time(count: int = 30) -> list[Record]:
    """A method in one layer at a time, of which layer i costs a loss of i hundredths, on three texts."""
    found: list[Record] = []
    for method, layer in (("flash2", None), *(("hyper", i) for i in range(count))):
        of = point(method, "perplexity", "" if layer is None else str(layer), 4096)
        # Texts differ, and what a layer costs differs a little between them.
        costs = [0.0 if layer is None else layer * (0.01 + 0.001 * (text - 1)) for text in range(3)]
        found += [ErrorRow(of, text, "loss", 2.0 + text + cost) for text, cost in enumerate(costs)]
    return found
