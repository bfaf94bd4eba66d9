"""Classifiers of one's own against the same classifier called directly."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cf_utils.core import describe
from cf_utils.models import own
from tests import own_models

HERE = "tests.own_models:"


@pytest.fixture
def x():
    return torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested"])
def test_a_function_and_its_weights(tmp_path, x, kind):
    trained = own_models.small_network()
    with torch.no_grad():
        trained[3].bias += 1.5
    path = tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pt'}"
    state = trained.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "nested" else state, path)
    model = own.load(HERE + "small_network", path)
    torch.testing.assert_close(model(x), trained(x))
    assert model.differentiable
    with pytest.raises(AssertionError):
        torch.testing.assert_close(own.load(HERE + "small_network")(x), trained(x))


def test_weights_of_another_network_are_named(tmp_path):
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"weights: .* does not fit Sequential: "):
        own.load(HERE + "small_network", tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_file_keeps_its_gradient(tmp_path, x):
    network = own_models.small_network().eval()
    torch.jit.trace(network, x).save(str(tmp_path / "net.ts"))
    model = own.load(str(tmp_path / "net.ts"))
    torch.testing.assert_close(model(x), network(x))
    assert model(x.requires_grad_()).requires_grad and model.differentiable


@pytest.mark.parametrize("name", ["forest", "logistic"])
def test_an_estimator_gives_its_probabilities(name):
    estimator, x = getattr(own_models, name)(), own_models.load_breast_cancer().data[:30]
    model = own.load(HERE + name)
    scores = model(torch.from_numpy(x).float()).softmax(1)
    if hasattr(estimator, "feature_names_in_"):
        x = own_models.load_breast_cancer(as_frame=True).data[:30]
    np.testing.assert_allclose(scores, estimator.predict_proba(x), atol=1e-3)
    assert not model.differentiable


def test_an_estimator_without_probabilities_gives_its_margin():
    x = own_models.load_breast_cancer().data[:30]
    logits = own.load(HERE + "ridge")(torch.from_numpy(x).float())
    expected = own_models.ridge().decision_function(x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-3)


def test_probabilities_become_logits(x):
    for name in ("ends_in_softmax", "one_sigmoid"):
        raw = getattr(own_models, name)()(x)
        scores = own.load(HERE + name, output="probabilities")(x).softmax(1)
        torch.testing.assert_close(scores[:, -1], raw[:, -1])
        assert scores.shape[1] >= 2
    with pytest.raises(ValueError, match="output: got 'probabilities', but values from"):
        own.load(HERE + "small_network", output="probabilities")(10 * x)


def test_a_single_logit_belongs_to_class_one():
    model = own.OwnModel(nn.Flatten(0))
    torch.testing.assert_close(model(torch.tensor([[2.0], [-1.0]]))[:, 1], torch.tensor([2.0, -1]))


@pytest.fixture
def onnx_file(tmp_path):
    """A linear classifier with three inputs and two outputs, as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    weight = np.array([[1.0, -1], [0.5, 2], [0, 1]], dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["z"])
    shapes = (("x", [None, 3]), ("z", [None, 2]))
    x, z = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes)
    graph = helper.make_graph([node], "linear", [x], [z], [array(weight, "w")])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, str(tmp_path / "linear.onnx"))
    return tmp_path / "linear.onnx", torch.from_numpy(weight)


def test_an_onnx_file_gives_its_logits(onnx_file):
    path, weight = onnx_file
    model, x = own.load(str(path)), torch.rand(4, 3)
    torch.testing.assert_close(model(x), x @ weight)
    assert not model.differentiable


def test_onnx_names_the_missing_package(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="needs the package onnxruntime; install it with"):
        own.load(str(onnx_file[0]))


def test_results_of_different_models_are_told_apart(tmp_path, x):
    names = {str(describe(own.load(HERE + n))) for n in ("forest", "logistic", "ridge")}
    assert len(names) == 3
    assert describe(own.load(HERE + "forest")) == describe(own.load(HERE + "forest"))
    logits, probabilities = (own.load(HERE + "one_sigmoid", output=out) for out in own.OUTPUTS)
    assert describe(logits) != describe(probabilities)


class Touch:
    """A pickle that leaves a file where it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_is_ever_opened(tmp_path):
    import pickle

    witness = tmp_path / "opened"
    for name in ("model.pkl", "model.joblib"):
        (tmp_path / name).write_bytes(pickle.dumps(Touch(witness)))
        with pytest.raises(ValueError, match="is a pickle, and opening one can run any code"):
            own.load(str(tmp_path / name))
    torch.save(Touch(witness), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="no safetensors and no torch file of tensors alone"):
        own.load(HERE + "small_network", tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"is no TorchScript file .* pass module:function"):
        own.load(str(tmp_path / "w.pt"))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module:f", "model: cannot import 'no_such_module'"),
        (HERE + "no_function", "has no function 'no_function'"),
        (HERE + "not_a_function", "has no function 'not_a_function'"),
        (HERE + "a_class", "returned the class Identity, not an object"),
        (HERE + "nonsense", "model: got a object, expected an nn.Module, or a fitted classifier"),
        ("missing.onnx", "missing.onnx is missing; expected module:function"),
    ],
)
def test_a_wrong_source_is_named(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own.load(source)
