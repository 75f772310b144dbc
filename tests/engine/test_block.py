"""The network with merged convolutions, shared norms and a backward pass of its own is the plain network."""

import pytest
import torch
from torch import Tensor, nn

from bench.plain import PlainInceptionResNetV1
from engine.model import InceptionResidual, InceptionResNetV1, Stage


def pair(dtype: torch.dtype, training: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    """Plain and ours with the same weights, and pictures; norms and last layer are no longer as they start."""
    torch.manual_seed(0)
    plain, ours = PlainInceptionResNetV1(5, 0.25), InceptionResNetV1(5, 0.25, dropout=0.0)
    for norm in (module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)):
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert vector is not None
            nn.init.uniform_(vector, 0.5, 1.5)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(4, 3, 96, 80, dtype=dtype)
    plain, ours = (m.to(dtype).to(memory_format=torch.channels_last).train(training) for m in (plain, ours))
    return plain, ours, images


def outcome(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits, all gradients, that of the pictures too, and all buffers afterwards."""
    images = images.detach().requires_grad_()
    logits = model(images)
    logits.backward(torch.linspace(-1, 1, logits.numel()).view_as(logits).to(logits.dtype))
    gradients = {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    return {"logits": logits, "grad of images": images.grad, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_same_function_and_gradients(training: bool) -> None:
    plain, ours, images = pair(torch.float64, training)
    expected, found = outcome(plain, images), outcome(ours, images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_same_under_autocast() -> None:
    """As far from float64 as the plain network is, or nearer."""
    plain, ours, images = pair(torch.float64, True)
    exact = outcome(plain, images)
    apart = []
    for model in (plain, ours):
        model.float().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            results = outcome(model, images.float())
        assert all(results[name].dtype == torch.float32 for name in results if name.startswith("grad"))
        errors = [
            (results[name].double() - value).norm() / value.norm()
            for name, value in exact.items()
            if name.startswith("grad") and value.norm() > 0
        ]
        apart.append(torch.stack(errors).median().item())
    assert apart[1] < 1.2 * apart[0]


def test_weights_go_both_ways() -> None:
    plain, ours, _ = pair(torch.float32, True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    plain.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("form", ["contiguous", "expanded", "slice"])
@pytest.mark.parametrize("relu", [True, False])
def test_any_layout(relu: bool, form: str) -> None:
    """Of the map and of the gradient from upstream: the same results as in channels-last memory."""
    torch.manual_seed(0)
    branches = [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, (1, 3), 1, (0, 1))]]
    blocks = Stage(InceptionResidual(16, branches, 0.3), InceptionResidual(16, branches, 0.3, relu))
    x = torch.randn(2, 16, 3, 5)
    upstream = {
        "contiguous": torch.randn(2, 16, 3, 5),
        "expanded": torch.randn(2, 16, 1, 1).expand(2, 16, 3, 5),
        "slice": torch.randn(2, 20, 3, 5).to(memory_format=torch.channels_last)[:, 2:18],
    }[form]
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=layout).requires_grad_()
        y = blocks(given)
        due = upstream if layout == torch.contiguous_format else upstream.contiguous(memory_format=layout)
        results.append((y, *torch.autograd.grad(y, (given, *blocks.parameters()), due)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("relu", [True, False])
def test_a_block_alone(relu: bool) -> None:
    """With the ReLU at its end or without; what comes from upstream is not written to."""
    torch.manual_seed(0)
    block = InceptionResidual(16, [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, (1, 3), 1, (0, 1))]], 0.3, relu).double()
    shape = (2, 16, 3, 3)
    x, upstream = (torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last) for _ in range(2))
    before = upstream.clone()
    x.requires_grad_()
    y = block(x)
    y.backward(upstream)
    assert torch.equal(upstream, before)
    mixed = torch.cat([block.get_submodule("branch0")(x), block.get_submodule("branch1")(x)], 1)
    joined = x + 0.3 * block.conv2d(mixed)
    torch.testing.assert_close(y, torch.relu(joined) if relu else joined)
    assert torch.autograd.gradcheck(block, (x.detach().requires_grad_(),), fast_mode=True)
