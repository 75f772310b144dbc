"""Every kernel as the network launches it: 320×320 pictures, batch 32, width 1, 20 labels."""

from kernels import asymmetric, bce, pixels, residual
from kernels.machine_code import Variant
from kernels.tuning import ASYMMETRIC_LOSS, NORMALIZE, RESIDUAL_ADD_RELU, SIGMOID_BCE

_BLOCK_A, _LOGITS = 32 * 256 * 37 * 37, 32 * 20

_RESIDUAL = [
    Variant(
        name=f"residual_add{'_relu' if relu else ''}",
        kernel=residual._residual_add_relu_fwd_kernel,
        arguments={"x_ptr": "*T", "branch_ptr": "*T", "y_ptr": "*T", "scale": "fp32", "n": "i64"},
        constants={"RELU": relu},
        launch=RESIDUAL_ADD_RELU,
        shape="32×256×37×37",
        bytes=lambda item: 3 * item * _BLOCK_A,
    )
    for relu in (True, False)
] + [
    Variant(
        name="residual_add_relu backward",
        kernel=residual._residual_add_relu_bwd_kernel,
        arguments={"grad_ptr": "*T", "y_ptr": "*T", "grad_x_ptr": "*T", "grad_branch_ptr": "*T"}
        | {"scale": "fp32", "n": "i64"},
        constants={},
        launch=RESIDUAL_ADD_RELU,
        shape="32×256×37×37",
        bytes=lambda item: 4 * item * _BLOCK_A,
    ),
]

_LOSS = {"x_ptr": "*T", "loss_ptr": "*fp32", "grad_ptr": "*T", "factor": "fp32", "n": "i64", "labels": "i32"}

_LOSSES = [
    Variant(
        name="sigmoid_bce",
        kernel=bce._sigmoid_bce_fwd_kernel,
        arguments=_LOSS | {"y_ptr": "*u8", "smoothing": "fp32"},
        constants={"w_ptr": None, "mask_ptr": None, "REDUCED": True},
        launch=SIGMOID_BCE,
        shape="32×20, bool targets",
        bytes=lambda item: _LOGITS * (2 * item + 1),
        unaligned=frozenset({"labels"}),
    ),
    Variant(
        name="sigmoid_bce weighted, masked",
        kernel=bce._sigmoid_bce_fwd_kernel,
        arguments=_LOSS | {"y_ptr": "*fp32", "w_ptr": "*fp32", "mask_ptr": "*u8", "smoothing": "fp32"},
        constants={"REDUCED": False},
        launch=SIGMOID_BCE,
        shape="32×20",
        bytes=lambda item: _LOGITS * (2 * item + 8),
        unaligned=frozenset({"labels"}),
    ),
    Variant(
        name="asymmetric_loss",
        kernel=asymmetric._asymmetric_loss_fwd_kernel,
        arguments=_LOSS | {"y_ptr": "*u8", "gamma_pos": "fp32", "gamma_neg": "fp32", "margin": "fp32"},
        constants={"mask_ptr": None, "MARGIN": True, "REDUCED": True},
        launch=ASYMMETRIC_LOSS,
        load=64,
        store=64,
        shape="32×20, bool targets",
        bytes=lambda item: _LOGITS * (2 * item + 1),
        unaligned=frozenset({"labels"}),
    ),
    Variant(
        name="loss backward",
        kernel=bce._scale_gradient_kernel,
        arguments={"grad_ptr": "*T", "upstream_ptr": "*fp32", "out_ptr": "*T", "factor": "fp32", "n": "i64"},
        constants={"SCALAR": True},
        launch=SIGMOID_BCE,
        shape="32×20",
        bytes=lambda item: _LOGITS * 2 * item,
    ),
]

_NORMALIZE = [
    Variant(
        name="normalize",
        kernel=pixels._normalize_kernel,
        arguments={"pixels_ptr": "*u8", "out_ptr": "*T", "n": "i64"}
        | {f"{name}_{i}": "fp32" for name in ("mean", "by") for i in range(3)},
        constants={},
        launch=NORMALIZE,
        shape="32×320×320×3",
        bytes=lambda item: 32 * 320 * 320 * 3 * (1 + item),
    )
]

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _RESIDUAL + _LOSSES + _NORMALIZE}
