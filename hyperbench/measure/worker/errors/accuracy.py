"""Checks of an answer (is it one at all?), and its error metrics against the reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.methods.trivial import mean_v
from hyperbench.measure.worker.errors.reference import Reference, operator_norms
from hyperbench.measure.worker.errors.rows import Estimate, Rows

#: What an exact method may lose against the reference, as relative Frobenius error; a reference in float32 limits it.
EXACT_TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
#: What a single row of an exact output may lose, in these; a row much smaller than others is held against a part of
#: their size, since what it loses does not shrink with it.
_WORST_ROW = 10.0
_SMALL_ROW = 0.25
_ROW_QUANTILES = {"out_row_rel_p50": 0.5, "out_row_rel_p90": 0.9, "out_row_rel_p99": 0.99}


class IncorrectError(Exception):
    """A method's answer that no timing may follow; the message says what is wrong with it."""


def check_output(out: object, q: Tensor, v: Tensor, *, finite: bool = True) -> Tensor:
    """The answer as a tensor (B, H, N, Dv).

    Raises IncorrectError on a wrong type, shape, dtype, device or, unless told not to look, a non-finite value.
    """
    return _check_tensor("the output", out, (*q.shape[:3], v.shape[3]), q, finite)


def check_grads(grads: tuple[Tensor | None, ...], inputs: Inputs) -> Inputs:
    """The gradients of q, k and v. Raises IncorrectError if one is None, of the wrong shape or dtype, or not finite."""
    checked = [
        _check_tensor(f"the gradient of {name}", grad, tuple(x.shape), x)
        for name, grad, x in zip("qkv", grads, inputs, strict=True)
    ]
    return checked[0], checked[1], checked[2]


def check_exact(errors: Mapping[str, float], dtype: str) -> None:
    """Raise IncorrectError if an exact method's relative Frobenius errors exceed what its dtype explains."""
    tolerance = EXACT_TOLERANCES[dtype]
    for metric in ("out_rel_fro", "dq_rel_fro", "dk_rel_fro", "dv_rel_fro"):
        # Not `>`: what is no number at all must not pass.
        if not errors.get(metric, 0.0) <= tolerance:
            raise IncorrectError(
                f"an exact method must agree with the reference: {metric} is {errors[metric]:.3g}, above {tolerance:g}"
            )


def check_rows(out: Tensor, reference: Reference, dtype: str) -> None:
    """Raise IncorrectError if one row of an exact output (B, H, N, Dv) is off by more than its dtype explains.

    One wrong row among thousands is nothing in the error of the whole.
    """
    positions = reference.rows.positions
    errors = (out[:, :, positions].to(reference.out.dtype) - reference.out).norm(dim=3)
    sizes = reference.out.norm(dim=3)
    least = _SMALL_ROW * sizes.square().mean(dim=2, keepdim=True).sqrt()
    ratios = _ratios(errors, torch.maximum(sizes, least))
    worst, tolerance = float(ratios.max()), _WORST_ROW * EXACT_TOLERANCES[dtype]
    if not worst <= tolerance:
        row = int(positions[int(ratios.flatten(0, 1).amax(dim=0).argmax())])
        raise IncorrectError(
            f"an exact method must agree with the reference in every row: that of position {row} is off by {worst:.3g} "
            f"of its size, above {tolerance:g}"
        )


def output_errors(out: Tensor, reference: Reference) -> dict[str, Estimate]:
    """Errors of an output (B, H, N, Dv): relative Frobenius, quantiles over rows, largest entry, operator norm.

    From a part of the rows they are estimates with an interval.
    """
    rows, exact = reference.rows, reference.out
    difference = out[:, :, rows.positions].to(exact.dtype) - exact
    errors = {
        "out_rel_fro": _relative_frobenius(rows, difference, exact),
        "out_max_abs": rows.largest(difference.abs().amax(dim=3)),
    }
    row_errors = _ratios(difference.norm(dim=3), exact.norm(dim=3))
    for metric, level in _ROW_QUANTILES.items():
        errors[metric] = rows.quantile(row_errors, level)
    if reference.operator_scale is not None:
        errors["out_rel_op"] = Estimate(float(_ratios(operator_norms(difference), reference.operator_scale).max()))
    return errors


def trivial_errors(inputs: Inputs, reference: Reference, is_causal: bool) -> dict[str, Estimate]:
    """Errors of answering the mean of the values, or zero, on the same inputs."""
    rows, exact = reference.rows, reference.out
    mean = mean_v(*(x.to(exact.dtype) for x in inputs), is_causal=is_causal)[:, :, rows.positions]
    return {
        "mean_v_rel_fro": _relative_frobenius(rows, mean - exact, exact),
        "zero_rel_fro": Estimate(relative_frobenius(torch.zeros_like(exact), exact)),
    }


def lse_errors(lse: Tensor, reference: Reference) -> dict[str, Estimate]:
    """Mean absolute error of a log-sum-exp (B, H, N); a difference of logarithms is a relative error of the sum."""
    picked = lse[:, :, reference.rows.positions].to(reference.lse.dtype)
    return {"lse_mean_abs": reference.rows.mean((picked - reference.lse).abs().mean(dim=(0, 1)))}


def grad_errors(grads: tuple[Tensor, Tensor, Tensor], reference: Reference) -> dict[str, Estimate]:
    """Relative Frobenius errors of dq, dk and dv at all positions, under the same grad_output."""
    assert reference.grads is not None
    return {
        f"{name}_rel_fro": Estimate(relative_frobenius(grad.to(exact.dtype), exact))
        for name, grad, exact in zip(("dq", "dk", "dv"), grads, reference.grads, strict=True)
    }


def _relative_frobenius(rows: Rows, difference: Tensor, exact: Tensor) -> Estimate:
    """|difference|_F / |exact|_F over all rows, from these (B, H, R, Dv)."""
    parts, wholes = (x.double().square().sum(dim=(0, 1, 3)) for x in (difference, exact))
    return rows.root_of_ratio(parts, wholes)


def relative_frobenius(x: Tensor, exact: Tensor) -> float:
    """|x - exact|_F / |exact|_F; infinite where exact is zero and x is not."""
    difference, norm = float((x - exact).double().norm()), float(exact.double().norm())
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / norm


def _ratios(differences: Tensor, norms: Tensor) -> Tensor:
    """Zero over zero is no error; anything else over zero is infinite."""
    return torch.where(differences == 0, 0.0, differences / norms)


def _check_tensor(what: str, x: object, shape: tuple[int, ...], like: Tensor, finite: bool = True) -> Tensor:
    if not isinstance(x, Tensor):
        raise IncorrectError(f"{what} is {'None' if x is None else 'a ' + type(x).__name__}, not a tensor")
    if tuple(x.shape) != shape:
        swapped = len(shape) == x.dim() and tuple(x.shape) == (shape[0], shape[2], shape[1], *shape[3:])
        hint = "; heads and seq_len are swapped: layout=bnhd is for a method of that layout" if swapped else ""
        raise IncorrectError(f"{what} has shape {tuple(x.shape)}, not {shape}{hint}")
    if x.dtype != like.dtype:
        raise IncorrectError(f"{what} is {x.dtype}, not {like.dtype}".replace("torch.", ""))
    if x.device != like.device:
        raise IncorrectError(f"{what} is on {x.device}, not on {like.device}")
    if finite and not bool(x.isfinite().all()):
        raise IncorrectError(f"{what} has non-finite values")
    return x
