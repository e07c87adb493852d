"""First code of a child process: tie it to its parent, pin the parent's packages, run a module as the main program.

Started as `python -P start.py PARENT PLACES MODULE [ARGUMENT ...]`: the parent's process id, and where its packages are
as a JSON object. Nothing of hyperbench is imported before the packages are pinned.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

_PR_SET_PDEATHSIG = 1


class PinnedPackages(MetaPathFinder):
    """Finder of packages by their names in given folders, wherever else some of the same name may lie."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The package of that name in its folder; None for all others."""
        folder = self._places.get(fullname)
        if folder is None:
            return None
        return spec_from_file_location(
            fullname, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies; end it now if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(parent: str, places: str, module: str, *arguments: str) -> None:
    """Run a module of the parent's packages as the main program of this process."""
    die_with(int(parent))
    sys.meta_path.insert(0, PinnedPackages(json.loads(places)))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
