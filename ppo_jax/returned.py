"""What functions of others give back and raise, and values of options: number and shown text."""

import math
import numbers
from typing import Any

import numpy as np

from ppo_jax.text import one_line

MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_SHOWN = 80  # characters


def as_number(value: Any) -> float | None:
    """As float32 holds it (beyond its range: inf), or None if it is no number."""
    try:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "__array__"):
            value = np.asarray(value).item()  # scalars of numpy, JAX or torch
        if not isinstance(value, numbers.Real):
            return None
        with np.errstate(over="ignore"):
            return float(np.float32(float(value)))
    except OverflowError:  # an int or a fraction beyond float64
        return math.inf
    except Exception:  # part of a gradient, not on this device, or of a class of its own
        return None


def as_text(value: Any) -> str:
    """The start of its text; a class or Python's limit of digits may refuse to give one."""
    try:
        return repr(str(value)[:MAX_SHOWN])
    except Exception as error:
        return f"a value without a text ({type(error).__name__})"


def as_code(value: Any) -> str:
    """The start of its repr, by which 5 and "5" differ; likewise."""
    try:
        return repr(value)[:MAX_SHOWN]
    except Exception as error:
        return f"a value without a text ({type(error).__name__})"


def what_raised(error: BaseException) -> str:
    """The kind of an error and, where it has one, its text."""
    try:
        return f"{type(error).__name__}: {one_line(error)}"
    except Exception:
        return type(error).__name__
