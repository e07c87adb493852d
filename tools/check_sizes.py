"""Check the sizes that `make lint` holds: lines a module, modules a folder, parameters a function, first lines."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hyperattn_core", "hyperbench", "tools")
MAX_LINES, MAX_MODULES, MAX_PARAMETERS = 300, 12, 8
#: Functions of these folders and files may take more parameters, for the reason given.
EXEMPT = {
    "hyperattn_core/triton_backend/kernels": "a Triton kernel takes pointers, sizes and constants one by one",
    "hyperattn_core/functional.py": "the public calls have the keywords of scaled_dot_product_attention and their own",
    "hyperbench/cli.py": "Typer makes an option of each parameter",
}
#: Methods of classes with such a base, and functions with such a decorator, have the signature that PyTorch asks for.
EXEMPT_BASES = ("Function",)
EXEMPT_DECORATORS = ("custom_op", "register_fake", "register_kernel", "triton_op", "jit")
QUESTION_WORDS = ("What", "Whether", "Which", "Where", "When", "How", "Who", "Why")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def offenders(root: Path) -> Iterator[str]:
    """Each breach of a limit under `root`, as path:line: message."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    folders = Counter(path.parent for path in paths if path.name != "__init__.py")
    for folder, count in folders.items():
        if count > MAX_MODULES:
            yield f"{folder.relative_to(root)}:1: {count} modules in a folder, at most {MAX_MODULES}"
    for path in paths:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root).as_posix()
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            yield f"{name}:{lines}: {lines} lines, at most {MAX_LINES}"
        may_take_more = any(name == exempt or name.startswith(f"{exempt}/") for exempt in EXEMPT)
        yield from (f"{name}:{message}" for message in _nodes(ast.parse(text), may_take_more))


def _nodes(node: ast.AST, exempt: bool) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | _Function):
        words = (ast.get_docstring(node) or "").split()
        if words and words[0] in QUESTION_WORDS:
            line = node.body[0].lineno
            yield f"{line}: a docstring begins with {words[0]!r}; begin with a noun phrase or an imperative"
    if isinstance(node, _Function):
        count = len([arg for arg in _parameters(node.args) if arg not in ("self", "cls")])
        if count > MAX_PARAMETERS and not exempt and not _named(node.decorator_list, EXEMPT_DECORATORS):
            yield f"{node.lineno}: {node.name} has {count} parameters, at most {MAX_PARAMETERS}"
    inside = exempt or (isinstance(node, ast.ClassDef) and _named(node.bases, EXEMPT_BASES))
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, inside)


def _parameters(args: ast.arguments) -> list[str]:
    found = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return [arg.arg for arg in found if arg is not None]


def _named(expressions: list[ast.expr], names: tuple[str, ...]) -> bool:
    """True if an expression is one of `names`, bare, called or as the last part of a dotted name."""
    return any(ast.unparse(expr).partition("(")[0].rpartition(".")[2] in names for expr in expressions)


if __name__ == "__main__":
    found = list(offenders(ROOT))
    print("\n".join(found) or "sizes: all within the limits")
    sys.exit(1 if found else 0)
