"""What holds for every operation: what it refuses and how it says so, and how it stands in torch's machinery."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import kernels

Arguments = dict[str, Any]


def feature_map(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 5, 3).to(dtype).contiguous(memory_format=torch.channels_last)


def vector() -> Tensor:
    return torch.rand(4) + 0.5


OPERATIONS: dict[str, Callable[[], Arguments]] = {
    "residual_add_relu": lambda: {"x": feature_map(), "branch": feature_map(), "scale": 0.5, "relu": True},
    "sigmoid_bce": lambda: {
        "logits": torch.randn(5, 4),
        "targets": torch.rand(5, 4),
        "pos_weight": vector(),
        "reduction": "mean",
        "label_smoothing": 0.1,
        "sample_mask": torch.tensor([True, False, True, True, True]),
    },
    "asymmetric_loss": lambda: {
        "logits": torch.randn(5, 4),
        "targets": torch.rand(5, 4),
        "gamma_pos": 1.0,
        "gamma_neg": 2.0,
        "margin": 0.1,
        "reduction": "mean",
        "sample_mask": torch.tensor([True, False, True, True, True]),
    },
    "batch_norm_relu": lambda: {
        "x": feature_map(),
        "weight": vector(),
        "bias": vector(),
        "running_mean": vector(),
        "running_var": vector(),
        "training": True,
        "momentum": 0.1,
        "eps": 1e-5,
        "relu": True,
        "residual": feature_map(),
        "scale": 0.5,
        "out": feature_map(),
    },
    "batch_norm_relu_concat": lambda: {
        "xs": [feature_map(), feature_map()],
        "weights": [vector(), vector()],
        "biases": [vector(), vector()],
        "running_means": [vector(), vector()],
        "running_vars": [vector(), vector()],
        "training": True,
        "momentum": 0.1,
        "eps": 1e-5,
    },
    "conv1x1_residual_relu": lambda: {
        "x": feature_map(),
        "branch": feature_map(),
        "weight": torch.randn(4, 4),
        "bias": vector(),
        "scale": 0.5,
        "relu": True,
    },
    "max_pool": lambda: {"x": feature_map()},
    "normalize": lambda: {
        "pixels": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "mean": [1.0, 2.0, 3.0],
        "std": [1.0, 2.0, 3.0],
        "dtype": torch.float16,
    },
}
OPTIONAL = {"pos_weight", "sample_mask", "residual", "out", "bias of conv1x1_residual_relu"}


def call(name: str, **changed: Any) -> Tensor:
    result: Tensor = getattr(kernels, name)(**OPERATIONS[name]() | changed)
    return result


def wrong_values(value: Any) -> list[Any]:
    """Of another type than the argument's."""
    if isinstance(value, Tensor):
        return [None, 3, "text", value.tolist(), value.numpy(), value.to_sparse()]
    if isinstance(value, bool):
        return [None, 1, 0.0, "True", np.bool_(True), torch.tensor(True)]
    if isinstance(value, float):
        return [None, "0.5", True, [0.5], 1j, torch.tensor(0.5)]
    if isinstance(value, list):
        return [None, 3, "text", torch.ones(3), {1.0, 2.0, 3.0}]
    return [3, torch.ones(3), [], object()]


def cases() -> list[Any]:
    found = []
    for name, make in OPERATIONS.items():
        for argument, value in make().items():
            for wrong in wrong_values(value):
                optional = wrong is None and {argument, f"{argument} of {name}"} & OPTIONAL
                if not optional:
                    found.append(pytest.param(name, argument, wrong, id=f"{name}-{argument}-{type(wrong).__name__}"))
    return found


@pytest.mark.parametrize(("name", "argument", "wrong"), cases())
def test_another_type(name: str, argument: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        call(name, **{argument: wrong})


@pytest.mark.parametrize("argument", ["xs", "weights", "biases", "running_means", "running_vars"])
@pytest.mark.parametrize("wrong", [None, 3, [1.0]], ids=str)
def test_another_type_in_a_list(argument: str, wrong: Any) -> None:
    values = OPERATIONS["batch_norm_relu_concat"]()[argument]
    with pytest.raises(ValueError, match=rf"^{argument}\[1\] is .*; it takes a tensor"):
        call("batch_norm_relu_concat", **{argument: [values[0], wrong]})


@pytest.mark.parametrize("argument", ["mean", "std"])
@pytest.mark.parametrize("wrong", [None, "1", True, torch.ones(())], ids=repr)
def test_another_type_of_a_channel(argument: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} is .*; it takes a Python number"):
        call("normalize", **{argument: [1.0, wrong, 1.0]})


@pytest.mark.parametrize("name", ["batch_norm_relu", "batch_norm_relu_concat", "max_pool"])
@pytest.mark.parametrize("training", [True, False])
def test_no_channels(name: str, training: bool) -> None:
    none, vectors = feature_map()[:, :0], torch.ones(0)
    given: Arguments = {"x": none}
    if name == "batch_norm_relu":
        given |= dict.fromkeys(("weight", "bias", "running_mean", "running_var"), vectors)
        given |= {"training": training, "residual": None, "scale": 1.0, "out": None}
    elif name == "batch_norm_relu_concat":
        several = ("weights", "biases", "running_means", "running_vars")
        given = {"xs": [feature_map(), none], "training": training} | {n: [vector(), vectors] for n in several}
    with pytest.raises(ValueError, match=r"^x.* has shape \(2, 0, 5, 3\); it takes one channel or more"):
        call(name, **given)


def differentiable(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """As a function of the first tensor, and that."""
    fixed: Arguments = OPERATIONS[name]()
    fixed |= {"sample_mask": None} if "sample_mask" in fixed else {}
    if name == "batch_norm_relu":
        fixed |= {"out": None, "running_mean": None, "running_var": None}
    first = next(iter(fixed))
    if isinstance(fixed[first], list):
        fixed |= {"running_means": None, "running_vars": None}
        x, *rest = fixed[first]
        return lambda x: getattr(kernels, name)(**fixed | {first: [x, *rest]}), x
    return lambda x: getattr(kernels, name)(**fixed | {first: x}), fixed[first]


WITH_GRADIENTS = [name for name in OPERATIONS if name != "normalize"]


@pytest.mark.parametrize("name", WITH_GRADIENTS)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_forward_mode_is_refused(name: str, with_gradient: bool) -> None:
    """A tangent of 0 would come out of the operators without a word."""
    operation, x = differentiable(name)
    with pytest.raises(ValueError, match="has a tangent"):
        torch.func.jvp(operation, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        operation(x)  # nothing has one
        dual = forward_ad.make_dual(x.clone().requires_grad_(with_gradient), torch.ones_like(x))
        with pytest.raises(ValueError, match="has a tangent"):
            operation(dual)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["residual_add_relu", "sigmoid_bce", "batch_norm_relu", "conv1x1_residual_relu"])
def test_compiled_forward_mode_is_refused(name: str) -> None:
    operation, x = differentiable(name)
    step = torch.compile(lambda x: torch.func.jvp(operation, (x,), (torch.ones_like(x),)), backend="aot_eager")
    with pytest.raises(ValueError, match="has a tangent"):
        step(x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_function_transforms_are_refused(name: str) -> None:
    if name == "normalize":
        x = OPERATIONS[name]()["pixels"]
        transforms: list[Callable[[Tensor], Any]] = [torch.vmap(lambda x: call(name, pixels=x))]
    else:
        operation, x = differentiable(name)
        transforms = [torch.vmap(operation), torch.func.grad(lambda x: operation(x).sum())]
    for transform in transforms:
        with pytest.raises(ValueError, match=r"is in a transform of torch\.func"):
            transform(torch.stack([x, x]) if transform is transforms[0] else x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_several_gradients_at_once(name: str) -> None:
    """As torch.autograd.functional.jacobian asks for them; those of batch norm are refused."""
    operation, x = differentiable(name)
    x = x.clone().requires_grad_()
    y = operation(x)
    upstream = torch.stack([torch.ones_like(y), torch.randn(y.shape)])
    for retain in (True, False):
        expected = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in upstream]
        if name.startswith("batch_norm"):
            with pytest.raises(RuntimeError, match="batch norm takes one gradient at a time"):
                torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
        else:
            (got,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=retain)
            torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("name", [name for name in WITH_GRADIENTS if name != "max_pool"])
def test_second_derivatives_are_refused(name: str) -> None:
    """They would be wrong without a word: to autograd a gradient that an operator made is a constant."""
    operation, x = differentiable(name)
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(operation(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_are_the_caller_s(name: str) -> None:
    """What is done to one in place changes neither those that come later nor what others hold."""
    operation, x = differentiable(name)
    x = x.clone().requires_grad_()
    y = operation(x)
    one = torch.ones_like(y)
    (first,) = torch.autograd.grad(y, x, one, retain_graph=True)
    kept = first.clone()
    first.fill_(7)
    (second,) = torch.autograd.grad(y, x, one)
    assert torch.equal(second, kept)
    assert (one == 1).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_inference_mode(name: str) -> None:
    torch.manual_seed(1)
    expected = call(name)
    torch.manual_seed(1)
    with torch.inference_mode():
        assert torch.equal(call(name), expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_meta_tensors(name: str) -> None:
    """Shape, dtype and layout without values, gradients included."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(v) for v in value]
        return value.to("meta") if isinstance(value, Tensor) else value

    given = OPERATIONS[name]()
    given |= {"out": None} if "out" in given else {}
    y, expected = (
        getattr(kernels, name)(**arguments) for arguments in ({k: moved(v) for k, v in given.items()}, given)
    )
    assert (y.shape, y.dtype, y.stride()) == (expected.shape, expected.dtype, expected.stride())
    if name in WITH_GRADIENTS:
        _, x = differentiable(name)
        fixed = {k: moved(v) for k, v in given.items()}
        first = next(iter(fixed))
        x = x.to("meta").requires_grad_()
        y = getattr(kernels, name)(**fixed | {first: [x, *fixed[first][1:]] if isinstance(fixed[first], list) else x})
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)


TWICE: dict[str, Callable[..., Tensor]] = {
    "residual_add_relu": lambda x, v: kernels.residual_add_relu(x, x, 0.5),
    "residual_add_relu without relu": lambda x, v: kernels.residual_add_relu(x, x, 0.5, relu=False),
    "conv1x1_residual_relu": lambda x, v: kernels.conv1x1_residual_relu(x, x, x[0, :, :2, :2].reshape(4, 4), v, 0.5),
    "batch_norm_relu": lambda x, v: kernels.batch_norm_relu(x, v, v, None, None, True, residual=x, scale=0.5),
    "batch_norm_relu without training": lambda x, v: kernels.batch_norm_relu(
        x, v, v, v.detach(), v.detach(), False, residual=x
    ),
    "batch_norm_relu_concat": lambda x, v: kernels.batch_norm_relu_concat([x, x], [v, v], [v, v], None, None, True),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", TWICE)
def test_one_tensor_given_twice(name: str, dtype: torch.dtype) -> None:
    """Its gradient is the sum of both, compiled without a break too."""
    x, v = feature_map(dtype).requires_grad_(), vector().requires_grad_()
    y = TWICE[name](x, v)
    upstream = torch.randn(y.shape).to(dtype)
    wanted = (x, v) if "residual_add" not in name else (x,)
    results = []
    for operation in (TWICE[name], torch.compile(TWICE[name], backend="aot_eager", fullgraph=True)):
        y = operation(x, v)
        results.append((y, *torch.autograd.grad(y, wanted, upstream)))
    torch.testing.assert_close(results[1], results[0])
    # Two tensors of the same values: their gradients add up to that of the one.
    if name == "residual_add_relu":
        a, b = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        grads = torch.autograd.grad(kernels.residual_add_relu(a, b, 0.5), (a, b), upstream)
        torch.testing.assert_close(results[0][1], grads[0] + grads[1])


@pytest.mark.parametrize("place", ["x", "residual", "weight", "running_var", "a part of x"])
def test_out_is_no_input(place: str) -> None:
    given = OPERATIONS["batch_norm_relu"]()
    if place == "a part of x":
        wide = torch.zeros(2, 5, 3, 9).permute(0, 3, 1, 2)
        given |= {"x": wide[:, :4], "out": wide[:, 3:7]}
    elif place in ("weight", "running_var"):
        given[place] = given["out"].permute(0, 2, 3, 1).flatten()[:4]
    else:
        given["out"] = given[place]
    name = place.split()[-1]
    with pytest.raises(ValueError, match=f"^out shares memory with {name}; it takes memory of its own"):
        kernels.batch_norm_relu(**given)


@pytest.mark.parametrize(
    ("at", "to", "refused"), [(0, 4, False), (4, 0, False), (2, 5, True), (5, 2, True), (5, 5, True)]
)
def test_slices_of_one_buffer(at: int, to: int, refused: bool) -> None:
    """Side by side they share nothing, though their memory is one stretch; nor do pictures of one batch."""
    buffer = torch.randn(4, 5, 3, 9).permute(0, 3, 1, 2)
    given = OPERATIONS["batch_norm_relu"]() | {"residual": None, "scale": 1.0}
    x, out = buffer[:2, at : at + 4], buffer[:2, to : to + 4]
    expected = kernels.batch_norm_relu(**given | {"x": x, "out": None})
    if refused:
        with pytest.raises(ValueError, match="out shares memory with x"):
            kernels.batch_norm_relu(**given | {"x": x, "out": out})
        kernels.batch_norm_relu(**given | {"x": x, "out": buffer[2:, to : to + 4]})
        out = buffer[2:, to : to + 4]
    else:
        kernels.batch_norm_relu(**given | {"x": x, "out": out})
    assert torch.equal(out, expected)


def overlapping() -> list[tuple[str, str, Tensor]]:
    """Maps whose elements share memory: expanded, or with rows nearer to one another than they are long."""
    near = torch.randn(200).as_strided((2, 4, 5, 3), (45, 1, 9, 3))
    wide = torch.randn(1, 4, 5, 3).contiguous(memory_format=torch.channels_last).expand(2, -1, -1, -1)
    found = []
    for name, argument in (
        ("residual_add_relu", "x"),
        ("residual_add_relu", "branch"),
        ("batch_norm_relu", "x"),
        ("batch_norm_relu", "residual"),
        ("batch_norm_relu", "out"),
        ("conv1x1_residual_relu", "x"),
        ("conv1x1_residual_relu", "branch"),
        ("max_pool", "x"),
    ):
        found += [(name, argument, near), (name, argument, wide)]
    return found


@pytest.mark.parametrize(("name", "argument", "value"), overlapping())
def test_elements_that_share_memory(name: str, argument: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} has strides"):
        call(name, **{argument: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in WITH_GRADIENTS if "loss" not in name and "bce" not in name])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """Inside, its dtype would round what plain torch computes there."""

    def converted(value: Any) -> Any:
        if isinstance(value, list):
            return [converted(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        return value.to(
            dtype if value.dim() == 4 or name.startswith("conv") else torch.promote_types(dtype, value.dtype)
        )

    fixed = {k: converted(v) for k, v in OPERATIONS[name]().items()}
    fixed |= {"out": None} if "out" in fixed else {}
    fixed |= {k: None for k in fixed if k.startswith("running")}
    first = next(iter(fixed))
    x = (fixed[first][0] if isinstance(fixed[first], list) else fixed[first]).requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = getattr(kernels, name)(**fixed)
            results.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    x.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(getattr(kernels, name)(**fixed), results[0][0], rtol=0, atol=0)  # a frozen network's
