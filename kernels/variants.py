"""Every kernel at the network's own shapes: 320×320 pictures, batch 32, width 1, 20 labels.

Most are what a training step launches; the rest are forms that it has no use for, as residual_add_relu, whose place
conv1x1_residual_relu takes, or a residual connection beside batch norm.
"""

from typing import Any

import triton
import triton.language as tl

from kernels import asymmetric, batch_norm_triton, bce, conv1x1, pixels, pool, residual
from kernels.machine_code import Variant
from kernels.tuning import (
    ASYMMETRIC_LOSS,
    BATCH_NORM_COMBINE,
    CONV1X1_DEEP,
    CONV1X1_FLOAT32,
    CONV1X1_MASK,
    CONV1X1_SHALLOW,
    MAX_POOL,
    NORMALIZE,
    RESIDUAL_ADD_RELU,
    SIGMOID_BCE,
)

_BLOCK_A, _LOGITS = 32 * 256 * 37 * 37, 32 * 20

_RESIDUAL = [
    Variant(
        name=f"residual_add{'_relu' if relu else ''}",
        kernel=residual._residual_add_relu_fwd_kernel,
        arguments={"x_ptr": "*T", "branch_ptr": "*T", "y_ptr": "*T", "scale": "fp32", "n": "i32"},
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
        | {"scale": "fp32", "n": "i32"},
        constants={},
        launch=RESIDUAL_ADD_RELU,
        shape="32×256×37×37",
        bytes=lambda item: 4 * item * _BLOCK_A,
    ),
]

_LOSS = {"x_ptr": "*T", "loss_ptr": "*fp32", "grad_ptr": "*fp32", "factor": "fp32", "n": "i32", "labels": "i32"}

_LOSSES = [
    Variant(
        name="sigmoid_bce",
        kernel=bce._sigmoid_bce_fwd_kernel,
        arguments=_LOSS | {"y_ptr": "*u8", "smoothing": "fp32"},
        constants={"w_ptr": None, "mask_ptr": None, "REDUCED": True},
        launch=SIGMOID_BCE,
        shape="32×20, bool targets",
        bytes=lambda item: _LOGITS * (item + 4 + 1),
        unaligned=frozenset({"labels"}),
    ),
    Variant(
        name="sigmoid_bce weighted, masked",
        kernel=bce._sigmoid_bce_fwd_kernel,
        arguments=_LOSS | {"y_ptr": "*fp32", "w_ptr": "*fp32", "mask_ptr": "*u8", "smoothing": "fp32"},
        constants={"REDUCED": False},
        launch=SIGMOID_BCE,
        shape="32×20",
        bytes=lambda item: _LOGITS * (item + 4 + 4 + 4),
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
        bytes=lambda item: _LOGITS * (item + 4 + 1),
        unaligned=frozenset({"labels"}),
    ),
    Variant(
        name="loss backward",
        kernel=bce._scale_gradient_kernel,
        arguments={"grad_ptr": "*fp32", "upstream_ptr": "*fp32", "out_ptr": "*T", "n": "i32"},
        constants={"SCALAR": True},
        launch=SIGMOID_BCE,
        shape="32×20",
        bytes=lambda item: _LOGITS * (4 + item),
    ),
]

_NORMALIZE = [
    Variant(
        name="normalize",
        kernel=pixels._normalize_kernel,
        arguments={"pixels_ptr": "*u8", "out_ptr": "*T", "n": "i32"}
        | {f"{name}_{i}": "fp32" for name in ("mean", "by") for i in range(3)},
        constants={},
        launch=NORMALIZE,
        shape="32×320×320×3",
        bytes=lambda item: 32 * 320 * 320 * 3 * (1 + item),
    )
]

_SIZES = {"rows": "i32", "rows_each": "i32", "total": "i32", "eps": "fp32", "scale": "fp32"}
_PASSES = {"y_pitch": "i32", "residual_pitch": "i32", "part_ptr": "*fp32", "sums_ptr": "*fp32"}


def _batch_norm(widths: tuple[int, ...], size: int) -> list[Variant]:
    """The kernels over maps side by side; the mask comes from x, as without a residual, but where there is one.

    What is compiled anew for TILES differs in a division alone.
    """
    maps, n = len(widths), 32 * size * size * sum(widths)
    channels = " + ".join(map(str, widths))
    elementwise, sums = batch_norm_triton.launches(widths)
    of_each = (
        {f"{name}_ptrs": ("*T",) * maps for name in ("x", "y", "grad", "grad_x")}
        | {f"{name}_ptrs": ("*fp32",) * maps for name in ("weight", "bias", "mean", "spread")}
        | {f"{name}_pitches": ("i32",) * maps for name in ("x", "y", "grad", "grad_x")}
        | {name: ("i32",) * maps for name in ("widths", "offsets")}
    )
    constants = {"FROM_VARIANCE": False, "RELU": True}
    none = {"y_ptr": None, "residual_ptr": None, "grad_residual_ptr": None}

    def variant(name: str, kernel: Any, passes: int, store: int, **residual: str) -> Variant:
        names, launch = kernel.arg_names, sums if "part_ptr" in kernel.arg_names else elementwise
        tiles = {"TILES": triton.cdiv(max(widths), launch.blocks["BLOCK_CHANNELS"])}
        given = {k: v for k, v in (of_each | _SIZES | _PASSES | residual).items() if k in names}
        return Variant(
            name=f"batch_norm {name}, {channels} channels",
            kernel=kernel,
            arguments=given,
            constants=tiles | {k: v for k, v in (none | constants).items() if k in names and k not in given},
            launch=launch,
            shape=f"32×({channels})×{size}×{size}" if maps > 1 else f"32×{channels}×{size}×{size}",
            bytes=lambda item: passes * n * item,
            store=store,
        )

    variants = [
        variant("statistics", batch_norm_triton._statistics_kernel, 1, 32),
        variant("normalize", batch_norm_triton._normalize_kernel, 2, 128),
        variant("sums", batch_norm_triton._sums_kernel, 2, 32),
        variant("grad_x", batch_norm_triton._grad_x_kernel, 3, 128),
    ]
    if maps > 1:
        return variants
    return [
        *variants,
        variant("normalize + residual", batch_norm_triton._normalize_kernel, 3, 128, residual_ptr="*T"),
        variant("grad_x + residual", batch_norm_triton._grad_x_kernel, 5, 128, y_ptr="*T", grad_residual_ptr="*T"),
    ]


def _combine(chunks: int, total: int) -> list[Variant]:
    """What joins the sums of so many programs, for so many channels of all maps."""
    shape, unaligned = f"{chunks} parts of {total}", frozenset({"chunks"} if chunks % 16 else ())
    constants = {"CHUNKS": triton.next_power_of_2(chunks)}
    sizes = {"chunks": "i32"} | {k: v for k, v in _SIZES.items() if k != "scale"}
    values = constants["CHUNKS"] * BATCH_NORM_COMBINE.blocks["BLOCK_CHANNELS"] // (32 * BATCH_NORM_COMBINE.warps)
    return [
        Variant(
            name=f"batch_norm combine statistics, {chunks} parts",
            kernel=batch_norm_triton._combine_statistics_kernel,
            arguments={"part_ptr": "*fp32", "statistics_ptr": "*fp32"} | sizes,
            constants=constants,
            launch=BATCH_NORM_COMBINE,
            shape=shape,
            bytes=lambda item: 4 * total * (2 * chunks + 3),
            load=min(128, 32 * values),  # few parts leave each thread few
            store=32,
            dtypes=("fp32",),
            unaligned=unaligned,
        ),
        Variant(
            name=f"batch_norm combine sums, {chunks} parts",
            kernel=batch_norm_triton._combine_sums_kernel,
            arguments={"part_ptr": "*fp32", "sums_ptr": "*fp32", "columns": "i32", "chunks": "i32", "scale": "fp32"},
            constants=constants,
            launch=BATCH_NORM_COMBINE,
            shape=shape,
            bytes=lambda item: 4 * 2 * total * (chunks + 1),
            load=min(128, 32 * values),  # few parts leave each thread few
            store=32,
            dtypes=("fp32",),
            unaligned=unaligned,
        ),
    ]


_BATCH_NORM = [
    variant
    for widths, size in (((32,), 37), ((32,) * 2, 37), ((32,) * 3, 37), ((192,), 37), ((128,) * 2, 18))
    for variant in _batch_norm(widths, size)
]
_BATCH_NORM += _batch_norm((384, 256, 256), 8)
_BATCH_NORM += [
    variant
    for chunks, total in ((8, 896), (16, 192), (21, 768), (58, 256), (81, 128), (172, 64), (487, 32))
    for variant in _combine(chunks, total)
]

_POOL_SIZES = dict.fromkeys(("height", "width", "out_height", "out_width", "rows", "channels"), "i32")

_POOL = [
    Variant(
        name=name,
        kernel=kernel,
        arguments={pointer: "*T" for pointer in pointers} | {"tap_ptr": "*u8", pitch: "i32"} | _POOL_SIZES,
        constants={"INDEX": tl.int32},
        launch=MAX_POOL,
        shape="32×64×157×157",
        bytes=lambda item: 32 * 64 * (157 * 157 * item + 78 * 78 * (item + 1)),
        unaligned=frozenset(_POOL_SIZES) - {"rows", "channels"},
    )
    for name, kernel, pointers, pitch in (
        ("max_pool", pool._max_pool_fwd_kernel, ("x_ptr", "y_ptr"), "x_pitch"),
        ("max_pool backward", pool._max_pool_bwd_kernel, ("grad_ptr", "grad_x_ptr"), "grad_pitch"),
    )
]

# Pixels, channels and depth by block. A block C without ReLU ends a network made from the published weights.
_TAILS = {
    "A": (32 * 37 * 37, 256, 96, "37×37", CONV1X1_SHALLOW),
    "B": (32 * 18 * 18, 896, 256, "18×18", CONV1X1_DEEP),
    "C": (32 * 8 * 8, 1792, 384, "8×8", CONV1X1_DEEP),
}


_PRODUCT = {"x_pitch": "i32", "branch_pitch": "i32", "scale": "fp32"} | dict.fromkeys(
    ("pixels", "channels", "depth"), "i32"
)


def _input_gradient(block: str, precision: str, dtypes: tuple[str, ...]) -> Variant:
    pixels, channels, depth, size, launch = _TAILS[block]
    single = dtypes == ("fp32",)
    return Variant(
        name=f"conv1x1_input_gradient {block}{f' {precision}' if single else ''}",
        kernel=conv1x1._conv1x1_residual_fwd_kernel,
        arguments={"x_ptr": "*T", "branch_ptr": "*T", "weight_ptr": "*T", "y_ptr": "*T", "mask_ptr": "*T"}
        | {"sums_ptr": "*fp32", "mask_pitch": "i32", "depth_stride": "i32"}
        | _PRODUCT,
        constants={"bias_ptr": None, "channel_stride": 1, "RELU": False, "PRECISION": precision, "WIDEN": False},
        launch=CONV1X1_FLOAT32 if single else launch,
        shape=f"32×{channels}×{size}, depth {depth}",
        bytes=lambda item: item * (3 * pixels * channels + pixels * depth + channels * depth),
        matrix=not single or precision == "tf32",
        dtypes=dtypes,
    )


def _conv1x1(block: str, relu: bool, precision: str, dtypes: tuple[str, ...]) -> Variant:
    pixels, channels, depth, size, launch = _TAILS[block]
    single = dtypes == ("fp32",)
    return Variant(
        name=f"conv1x1_residual{'_relu' if relu else ''} {block}{f' {precision}' if single else ''}",
        kernel=conv1x1._conv1x1_residual_fwd_kernel,
        arguments={"x_ptr": "*T", "branch_ptr": "*T", "weight_ptr": "*T", "bias_ptr": "*fp32", "y_ptr": "*T"}
        | _PRODUCT
        | {"channel_stride": "i32"},
        constants={"RELU": relu, "PRECISION": precision, "WIDEN": False, "depth_stride": 1, "mask_pitch": 0}
        | {"mask_ptr": None, "sums_ptr": None},
        launch=CONV1X1_FLOAT32 if single else launch,
        shape=f"32×{channels}×{size}, depth {depth}",
        bytes=lambda item: item * (2 * pixels * channels + pixels * depth + channels * depth) + 4 * channels,
        matrix=not single or precision == "tf32",
        dtypes=dtypes,
    )


_CONV1X1 = [
    *(_conv1x1(block, True, "ieee", ("fp16", "bf16")) for block in _TAILS),
    _conv1x1("C", False, "ieee", ("fp16", "bf16")),
    *(_input_gradient(block, "ieee", ("fp16", "bf16")) for block in _TAILS),
    *(_conv1x1("B", True, precision, ("fp32",)) for precision in ("ieee", "tf32")),
    *(_input_gradient("B", precision, ("fp32",)) for precision in ("ieee", "tf32")),
    Variant(
        name="conv1x1_residual_relu backward",
        kernel=conv1x1._conv1x1_residual_bwd_kernel,
        arguments={"grad_ptr": "*T", "y_ptr": "*T", "out_ptr": "*T", "sums_ptr": "*fp32"}
        | {"grad_pitch": "i32", "pixels": "i32", "channels": "i32"},
        constants={},
        launch=CONV1X1_MASK,
        shape="32×256×37×37",
        bytes=lambda item: 3 * item * _BLOCK_A,
    ),
]

VARIANTS: dict[str, Variant] = {
    variant.name: variant for variant in _RESIDUAL + _LOSSES + _NORMALIZE + _BATCH_NORM + _POOL + _CONV1X1
}
