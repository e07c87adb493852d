"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Kernels run in Triton's interpreter, on the CPU; this must be known before they are first imported. The tests of
# tests/gpu, which need the compiled ones, are run with TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Small tensors gain nothing from a second thread, and threads that wait spin: processes that share the cores then take
# several times as long. PyTorch reads this when it is first imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

# A machine that other work shares is slow at times; that is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


#: Folders whose files take long: they come first, so that no process is left with one when the others are done.
LONGEST = ("triton", "commands", "traps", "core")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of some folders first, and leave their order as it is otherwise."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(ROOT / "tests").parts[0], len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and caches of the tests are their own: a run that is measuring meanwhile neither stops them nor is used.

    Processes that tests start can import what the tests import, whatever their current folder is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        for name in ("HYPERBENCH_LOCK_DIR", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield
