"""`hyperbench plot` where no image can be written: the page is there, and the exit code says that the image is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbench.analyze.plotting import write
from tests.helpers.commands import Call
from tests.helpers.synthetic_runs import grid, write_run


@pytest.mark.parametrize("formats", ["png", "html,svg"])
def test_an_image_that_was_not_written_is_exit_code_1_and_a_reason(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formats: str
) -> None:
    monkeypatch.setattr(write, "image_obstacle", lambda: "to write images, install a browser")
    write_run(tmp_path / "run", grid((1024, 2048), masks=(False,)))
    answer = call("plot", "times", "--run", "run", "--format", formats)
    assert answer.code == 1
    assert "(HTML instead); to write images, install a browser" in answer.out
    assert (tmp_path / "run" / "figures" / "times.html").is_file()
    assert call("plot", "times", "--run", "run").code == 0
