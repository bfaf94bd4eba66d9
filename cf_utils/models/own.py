"""Your own classifier: a network, a TorchScript or ONNX file, or a scikit-learn estimator.

Every kind becomes an `OwnModel`, which maps x to logits (B, K) as all methods expect. Nothing is
unpickled: an estimator comes from a function that returns it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.models.weights import mismatches

OUTPUTS = ("logits", "probabilities")
SMALLEST = 1e-7  # probability; its logarithm stays finite in float32
PICKLES = (".pkl", ".pickle", ".joblib", ".sav")


class OwnModel(nn.Module):
    """A classifier of any kind as a module from x to logits (B, K >= 2), in eval mode.

    Args:
        model: maps prepared inputs to outputs (B, K), or (B, 1) or (B,) for a single output.
        output: what `model` returns, "logits" or "probabilities". A single output belongs to class
            1; class 0 then has logit 0, or the rest of the probability.
        prepare: change of x before `model`, for instance into the units of a table; None: none.
        fingerprint: text that names the model's code and weights, for stored results.

    The output need not be a tensor. `differentiable` says whether a gradient can pass.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        output: str = "logits",
        prepare: nn.Module | None = None,
        fingerprint: str = "",
    ):
        super().__init__()
        check_choice("output", output, OUTPUTS)
        self.model, self.output, self.prepare = model, output, prepare
        digest = bytearray.fromhex(files.sha256(fingerprint, output))
        self.register_buffer("fingerprint", torch.frombuffer(digest, dtype=torch.uint8).clone())
        self.eval()

    @property
    def differentiable(self) -> bool:
        """Whether the classifier is made of torch operations."""
        return isinstance(self.model, nn.Module) and not isinstance(self.model, WithoutGradient)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of x (B, ...)."""
        out = self.model(x if self.prepare is None else self.prepare(x))
        if not isinstance(out, Tensor):
            raise ValueError(
                f"model: its output is a {type(out).__name__}, expected one tensor (B, K); return "
                "the logits alone"
            )
        if out.ndim == 1:
            out = out[:, None]
        if self.output == "probabilities":
            if (out < -1e-4).any() or (out > 1 + 1e-4).any():
                raise ValueError(
                    f"output: got 'probabilities', but values from {out.min():.3g} to "
                    f"{out.max():.3g}; expected output='logits'"
                )
            whole = torch.cat([1 - out, out], 1) if out.shape[1] == 1 else out
            return whole.clamp(min=SMALLEST).log()
        return torch.cat([torch.zeros_like(out), out], 1) if out.shape[1] == 1 else out


class WithoutGradient(nn.Module):
    """A classifier in numpy, which gives no gradient. `answer` maps (B, ...) to (B, K) or (B,)."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers for x as float32, on the device of x."""
        values = np.asarray(self.answer(x.detach().cpu().numpy()), dtype=np.float32)
        return torch.from_numpy(values.copy()).to(x.device)


def wrap_estimator(estimator: Any, prepare: nn.Module | None = None) -> OwnModel:
    """Wrap a fitted scikit-learn classifier, or anything with `predict_proba`.

    Without `predict_proba`, `decision_function` gives logits. Images are flattened to (B, F).
    Raises ValueError for an object with neither.
    """
    name, output = type(estimator).__name__, "probabilities"
    if hasattr(estimator, "predict_proba"):
        ask = estimator.predict_proba
    elif hasattr(estimator, "decision_function"):
        ask, output = estimator.decision_function, "logits"
    else:
        hint = "; SVC needs probability=True" if hasattr(estimator, "predict") else ""
        raise ValueError(
            f"model: got a {name}, expected an nn.Module, or a fitted classifier with "
            f"predict_proba or decision_function{hint}"
        )
    columns = getattr(estimator, "feature_names_in_", None)

    def answer(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        if columns is None:
            return ask(rows)
        import pandas as pd

        return ask(pd.DataFrame(rows, columns=columns))

    fingerprint = joblib.hash(estimator) or ""
    return OwnModel(WithoutGradient(answer), output, prepare, f"{name} {fingerprint}")


def load(
    source: str, weights: str | Path | None = None, output: str = "logits", **options: Any
) -> OwnModel:
    """Load a classifier of your own.

    Args:
        source: `module:function`, a function without arguments that returns an nn.Module or a
            fitted scikit-learn classifier; or the path of a TorchScript file (.pt, .ts) or an ONNX
            file (.onnx). Modules are found in the current folder, too.
        weights: of the nn.Module: a safetensors file, or a torch file of tensors alone.
        output: "logits" or "probabilities"; scikit-learn's is known.
        options: `prepare` of `OwnModel`.

    Raises ValueError or FileNotFoundError, with what to do, if the source cannot be used.
    """
    check_choice("output", output, OUTPUTS)
    path = Path(source)
    if path.suffix in PICKLES:
        raise ValueError(
            f"model: {path.name} is a pickle, and opening one can run any code; write a function "
            "that returns the fitted estimator, and pass module:function"
        )
    if ":" in source and not path.exists():
        return _load_function(source, weights, output, **options)
    if weights is not None:
        raise ValueError(f"weights: got {weights}, but {source} holds its own; leave them out")
    if not path.is_file():
        raise FileNotFoundError(
            f"model: {source} is missing; expected module:function, or a TorchScript or ONNX file"
        )
    if path.suffix == ".onnx":
        return OwnModel(
            WithoutGradient(_open_onnx(path)), output, fingerprint=_hash(path), **options
        )
    return OwnModel(_open_script(path), output, fingerprint=_hash(path), **options)


def _hash(path: Path) -> str:
    return files.sha256(path)


def _load_function(
    source: str, weights: str | Path | None, output: str, **options: Any
) -> OwnModel:
    made, file = _call(source)
    if not isinstance(made, nn.Module):
        if weights is not None:
            raise ValueError(
                f"weights: got {weights} for a {type(made).__name__}, expected them only for an "
                "nn.Module"
            )
        return wrap_estimator(made, **options)
    if isinstance(made, OwnModel):
        return made
    if weights is not None:
        state, own = files.read_published(weights), made.state_dict()
        state = state.get("state_dict", state.get("model", state))
        if wrong := mismatches(state, own):
            raise ValueError(
                f"weights: {weights} does not fit {type(made).__name__}: " + "; ".join(wrong[:8])
            )
        made.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    code = _hash(file) if file is not None else ""
    return OwnModel(made, output, fingerprint=f"{source} {code}", **options)


def _call(source: str) -> tuple[Any, Path | None]:
    """Import `module:function`, call it, and return what it gives and the module's file."""
    name, function = source.rsplit(":", 1)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        raise ValueError(
            f"model: cannot import {name!r} ({e}); run in the folder of {name.split('.')[0]}.py, "
            "or set PYTHONPATH"
        ) from e
    if not callable(maker := getattr(module, function, None)):
        raise ValueError(f"model: module {name!r} has no function {function!r}")
    made = maker()
    if isinstance(made, type):
        raise ValueError(f"model: {source} returned the class {made.__name__}, not an object of it")
    file = getattr(module, "__file__", None)
    return made, None if file is None else Path(file)


def _open_script(path: Path) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as e:
        raise ValueError(
            f"model: {path} is no TorchScript file ({str(e).strip().splitlines()[0]:.120}); a file "
            "of weights needs the network, too: pass module:function and the file as weights"
        ) from e


def _open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ImportError as e:
        raise ValueError(
            f"model: {path} needs the package onnxruntime; install it with `pip install "
            "onnxruntime`"
        ) from e
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [out.name for out in session.get_outputs() if out.type.startswith("tensor(float")]
    if not outputs:
        raise ValueError(
            f"model: {path} has no output of numbers; expected a tensor (B, K). From skl2onnx, "
            "export with options={'zipmap': False}"
        )
    return lambda x: np.asarray(session.run(outputs[:1], {name: x.astype(np.float32)})[0])
