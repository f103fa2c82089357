"""Functions of one real number, as tables are made of: put together from a few known ones.

A function is written in prefix form: ``X`` is the argument, ``("tanh", f)`` one of `KNOWN`, after
whose arguments its parameters come, as in ``("clip", f, 0.0, 6.0)`` (None: no end). However a model
file spells an activation (GELU by Erf, or a HardSwish of five operators), it becomes one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from codegen.graph.floats import Values
from codegen.graph.ir import INT8_MAX, INT8_MIN

Function: TypeAlias = tuple[Any, ...]
Dual: TypeAlias = tuple[Values, Values]
"""Values, and derivatives with respect to the argument."""

X: Function = ("x",)


def evaluated(function: Function, x: Values) -> Dual:
    """``function`` of each of ``x``, and its derivative; either of both at a bend."""
    if function == X:
        return x, np.ones_like(x)
    name, *rest = function
    return KNOWN[name](*(evaluated(p, x) if isinstance(p, tuple) else p for p in rest))


def composed(outer: Function, inner: Function) -> Function:
    """``outer`` of ``inner``."""
    if outer == X:
        return inner
    return tuple(composed(p, inner) if isinstance(p, tuple) else p for p in outer)


def _affine(f: Dual, gain: float, shift: float) -> Dual:
    return gain * f[0] + shift, gain * f[1]


def _clip(f: Dual, low: float | None, high: float | None) -> Dual:
    value = np.clip(f[0], -np.inf if low is None else low, np.inf if high is None else high)
    return value, np.where(value == f[0], f[1], 0.0)


def _add(f: Dual, g: Dual) -> Dual:
    return f[0] + g[0], f[1] + g[1]


def _mul(f: Dual, g: Dual) -> Dual:
    # What a comparison leaves out may be infinite there, as exp(x) is.
    left_out = ((f[0] == 0) & (f[1] == 0)) | ((g[0] == 0) & (g[1] == 0))
    with np.errstate(invalid="ignore", over="ignore"):
        value, slope = f[0] * g[0], f[0] * g[1] + f[1] * g[0]
    return np.where(left_out, 0.0, value), np.where(left_out, 0.0, slope)


def _above(f: Dual) -> Dual:
    """1 where f is above 0, else 0."""
    return (f[0] > 0).astype(np.float64), np.zeros_like(f[0])


def _atan(f: Dual) -> Dual:
    return np.arctan(f[0]), f[1] / (1 + f[0] ** 2)


def _cos(f: Dual) -> Dual:
    return np.cos(f[0]), -np.sin(f[0]) * f[1]


def _sin(f: Dual) -> Dual:
    return np.sin(f[0]), np.cos(f[0]) * f[1]


def _exp(f: Dual) -> Dual:
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.exp(f[0])
        return value, value * f[1]


def _log(f: Dual) -> Dual:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(f[0]), f[1] / f[0]


def _reciprocal(f: Dual) -> Dual:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 / f[0], -f[1] / f[0] ** 2


def _power(f: Dual, exponent: int) -> Dual:
    return f[0] ** exponent, exponent * f[0] ** (exponent - 1) * f[1]


def _sigmoid(f: Dual) -> Dual:
    value = 0.5 * (1 + np.tanh(0.5 * f[0]))
    return value, value * (1 - value) * f[1]


def _tanh(f: Dual) -> Dual:
    value = np.tanh(f[0])
    return value, (1 - value**2) * f[1]


def _erf(f: Dual) -> Dual:
    value = np.array([math.erf(x) for x in f[0].flat]).reshape(f[0].shape)
    return value, 2 / math.sqrt(math.pi) * np.exp(-(f[0] ** 2)) * f[1]


def _softplus(f: Dual) -> Dual:
    value = np.maximum(f[0], 0.0) + np.log1p(np.exp(-np.abs(f[0])))
    return value, _sigmoid(f)[0] * f[1]


def _leaky(f: Dual, slope: float) -> Dual:
    return np.where(f[0] < 0, slope * f[0], f[0]), np.where(f[0] < 0, slope, 1.0) * f[1]


def _coded(f: Dual, scale: float, zero_point: int) -> Dual:
    """What is left of values that are stored as codes in between."""
    steps = np.rint(f[0] / scale) + zero_point
    codes = np.clip(steps, INT8_MIN, INT8_MAX)
    return scale * (codes - zero_point), np.where(codes == steps, f[1], 0.0)


def _elu(f: Dual, alpha: float) -> Dual:
    below = np.exp(np.minimum(f[0], 0.0))
    return (
        np.where(f[0] < 0, alpha * (below - 1), f[0]),
        np.where(f[0] < 0, alpha * below, 1.0) * f[1],
    )


KNOWN: Mapping[str, Callable[..., Dual]] = {
    "above": _above,
    "add": _add,
    "affine": _affine,
    "atan": _atan,
    "clip": _clip,
    "coded": _coded,
    "cos": _cos,
    "elu": _elu,
    "erf": _erf,
    "exp": _exp,
    "leaky": _leaky,
    "log": _log,
    "mul": _mul,
    "power": _power,
    "reciprocal": _reciprocal,
    "sigmoid": _sigmoid,
    "sin": _sin,
    "softplus": _softplus,
    "tanh": _tanh,
}
