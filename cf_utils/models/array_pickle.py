"""Read a pickle of numpy arrays without running anything that the file asks for."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np


def read_arrays(content: bytes) -> dict[str, Any]:
    """Return the nested dict of numpy arrays that a pickle holds.

    Names in the pickle resolve to harmless stand-ins only, so no code of the file is run. Raises
    ValueError when the pickle holds or names anything besides dicts and numeric arrays.
    """
    try:
        content = _convert(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except Exception as e:  # a damaged stream can raise nearly anything
        raise ValueError(f"content: got no pickle of numpy arrays alone: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(
            f"content: got no pickle of numpy arrays alone: a {type(content).__name__}, "
            "expected a dict"
        )
    return content


class _Dtype:
    """Stand-in for numpy.dtype; accepts numeric types only."""

    def __init__(self, code: str, *_: object):
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}, expected numbers")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.code = f"{state[1]}{self.code}"  # byte order and type


class _Array:
    """Stand-in for numpy's array constructor; keeps shape, type and bytes."""

    def __init__(self, *_: object):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text
        order = "F" if column_major else "C"
        value = np.frombuffer(raw, dtype.code).reshape(shape, order=order)
        self.value = value.astype(value.dtype.newbyteorder("="), copy=False)  # torch needs native


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    """Resolves the names of a pickled numpy array to stand-ins, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


def _convert(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _convert(item) for key, item in value.items()}
    if not isinstance(value, _Array) or value.value is None:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    return value.value
