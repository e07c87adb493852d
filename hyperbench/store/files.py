"""Files that are read whole or refused in one line, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_MOST_YAML_CHARS = 2**21
_MOST_YAML_NODES = 200_000


class StoreError(ValueError):
    """A run's folder that cannot be read or written; the message is one line for the user."""


class DiskError(StoreError):
    """A disk that does not take what was measured: no fault of the command line, and no fault of the run."""


class DamageWarning(UserWarning):
    """A file of a run that is damaged, and is read but for what is damaged of it; one line for the user."""


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping that a text file holds. Raises StoreError if the file is missing, damaged or holds something else."""
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a YAML parser raises whatever its constructors of numbers and dates raise
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: it holds no mapping")
    return data


def check_writable(folder: Path, names: Iterable[str]) -> None:
    """Raise StoreError (one line) unless files of these names can be written to a folder, by rename of a new one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to: {error.strerror}") from None
    for name in names:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise StoreError(f"{path} is no regular file, and one is to be written there; move it away")


def load_yaml(text: str) -> Any:
    """The data of a YAML document, plain types alone.

    Raises ValueError, within a moment, on one that is long, or that its aliases and merge keys make long or endless.
    """
    import yaml

    if len(text) > _MOST_YAML_CHARS:
        raise ValueError(f"it has {len(text):,} characters, more than any configuration ({_MOST_YAML_CHARS:,})")
    # The loader in C is quicker, but ends the process where a file is nested deeply.
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _expanded_size(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _expanded_size(node: Any, sizes: dict[int, int]) -> int:
    """The number of nodes of a YAML document with every alias written out; `sizes` holds those known already."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_YAML_NODES + 1  # of a node that is met again inside itself
        pairs = node.value if isinstance(node.value, list) else []
        parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    if sizes[id(node)] > _MOST_YAML_NODES:
        raise ValueError(f"its aliases make it endless, or longer than {_MOST_YAML_NODES:,} values")
    return sizes[id(node)]


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file; a new one may be read by all. Raises OSError on a link, a pipe, a folder and the like.

    Neither waits for the other end of a pipe nor follows a link.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return fd


def atomic_write(
    path: Path, write: Callable[[Path], object], place: Callable[[Path, Path], object] = os.replace
) -> None:
    """Let `write` fill a temporary file next to path, then move it there: a reader sees the old file or the new one.

    Raises OSError if a link is in its place: what it leads to is not hyperbench's. `place` brings the file there.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link is in its place, and none is written through", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had this one's number
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text by temporary file and rename."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_new_text(path: Path, text: str) -> None:
    """Write text to a file that is not there yet, whole or not at all. Raises FileExistsError if another was faster."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), os.link)


def fsync_folder(folder: Path) -> None:
    """Wait until the disk has the names of a folder's files."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
