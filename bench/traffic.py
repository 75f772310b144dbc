"""`python -m bench.traffic`: what a training step moves and launches on a GPU, modelled without one.

Our network is counted as it trains: its operators in their order, recorded in a CUDA graph. The plain one (bench.plain)
and those of facenet-pytorch and timm, where installed, go through torch.compile's code generator for the GPU, and so
does ours beside it; the plain one is counted as eager torch runs it too. bfloat16 autocast, channels-last, batch
statistics; see bench.codegen. All take torch's fused Adam, which reads weight, gradient and two moments of each
parameter and writes three of them; ours reads the gradients once more, to leave out a step whose gradient is not
finite. Modelled, not measured: a time is bytes over bandwidth.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from engine import command
from pipelines.errors import InputError

ARCHITECTURES = (80, 90, 100)
# Bytes a second between memory and chip, by the makers' data sheets.
BANDWIDTH = {"A100 SXM 80 GB": 2.04e12, "H100 SXM": 3.35e12, "B200": 8.0e12}
OURS, PLAIN = "ours", "plain, torch.compile"
ADAM_BYTES, ADAM_LISTS = 7 * 4, 4  # a parameter
CHECK_BYTES, CHECK_LISTS, CHECK_LAUNCHES = 4, 1, 22  # ours reads its gradients for a norm; and some numbers


@dataclass(frozen=True, slots=True)
class Arguments:
    """Models a training step's traffic and launches on a GPU that need not be there, ours beside the plain network
    and others; exit status 1 if a generated kernel of ours does not assemble.

    Attributes:
        batch: pictures.
        size: height and width of the pictures.
        width: factor on the network's channels.
        labels: of the data set.
        arch: compute capabilities to assemble for, of 80, 90 and 100; the first one is modelled.
        json: writes the figures to this file too.
    """

    batch: int = 32
    size: int = 320
    width: float = 1.0
    labels: int = 20
    arch: tuple[int, ...] = (90, 80, 100)
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A network in training, its loss, and whether torch.compile makes its launches; else torch's operators do."""

    model: Any
    loss: Any
    compiled: bool = True


def peers(given: Arguments) -> dict[str, Peer]:
    """By name; ours first, then what it is held against."""
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    from bench.plain import PlainInceptionResNetV1
    from engine.model import InceptionResNetV1
    from kernels import sigmoid_bce

    ours = InceptionResNetV1(given.labels, given.width, dropout=0.0).train()
    plain = PlainInceptionResNetV1(given.labels, given.width).train()
    found = {
        OURS: Peer(ours, sigmoid_bce, compiled=False),
        "ours, torch.compile": Peer(ours, sigmoid_bce),
        PLAIN: Peer(plain, bce),
        "plain, eager": Peer(plain, bce, compiled=False),
    }
    if given.width == 1 and find_spec("facenet_pytorch"):
        from facenet_pytorch import InceptionResnetV1

        network = InceptionResnetV1(classify=True, num_classes=given.labels, dropout_prob=0.0)
        found["facenet-pytorch, torch.compile"] = Peer(network.train(), bce)
    if given.width == 1 and find_spec("timm"):
        import timm

        network = timm.create_model("inception_resnet_v2", num_classes=given.labels)
        found["timm inception_resnet_v2, torch.compile"] = Peer(network.train(), bce)
    return found


def summary(launches: Sequence[Any], parameters: Sequence[int], checked: bool = False) -> dict[str, Any]:
    """Launches and bytes of a step, the optimizer included.

    Args:
        parameters: their sizes.
        checked: whether the step looks for numbers that are not finite, as ours does (engine.health).
    """
    from bench.codegen import KINDS, multi_tensor_launches

    kinds = {kind: sum(launch.bytes for launch in launches if launch.kind == kind) for kind in KINDS}
    kinds["optimizer"] = (ADAM_BYTES + CHECK_BYTES * checked) * sum(parameters)
    update = multi_tensor_launches(parameters, ADAM_LISTS)
    if checked:
        update += multi_tensor_launches(parameters, CHECK_LISTS) + CHECK_LAUNCHES
    library = sum(launch.library for launch in launches)
    return {
        "kernels": len(launches) - library,
        "library_calls": library + update,
        "launches": len(launches) + update,
        "bytes": sum(kinds.values()),
        "bytes_by_kind": kinds,
    }


def floor(batch: int, size: int, width: float, labels: int) -> tuple[int, list[str]]:
    """Bytes that a step with batch statistics moves if nothing is moved twice, and how they come together.

    Each convolution with its norm: its input and output once forward, its output twice more for statistics and
    normalisation, which writes a map; backward the map's gradient and the output twice, the gradient of the output
    written and read twice, the input read, its gradient written.
    """
    import torch

    from bench.plain import ConvNormRelu, InceptionResidual, PlainInceptionResNetV1

    model = PlainInceptionResNetV1(labels, width).to("meta")
    maps = {"convolutions and norms": 0, "joins": 0}

    def conv_norm(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        maps["convolutions and norms"] += 2 * (3 * inputs[0].numel() + 11 * output.numel())

    def join(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        # x read and y written; backward the gradient read twice by the product, mask, gradient read and written.
        maps["joins"] += 2 * 7 * output.numel()

    for module in model.modules():
        if isinstance(module, ConvNormRelu):
            module.register_forward_hook(conv_norm)
        if isinstance(module, InceptionResidual):
            module.register_forward_hook(join)
    with torch.no_grad():
        model(torch.empty(batch, 3, size, size, device="meta"))
    weights = sum(p.numel() for p in model.parameters())
    parts = maps | {"weights: cast, read forward and backward, gradients": weights * (4 + 2 + 2 + 2 + 2 + 2 + 4)}
    parts |= {"optimizer": ADAM_BYTES * weights}
    return sum(parts.values()), [f"{name} {moved / 1e9:.2f} GB" for name, moved in parts.items()]


def show(results: dict[str, dict[str, Any]], given: Arguments) -> Table:
    title = f"modelled for sm_{given.arch[0]}: batch {given.batch}, {given.size}×{given.size}, width {given.width:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    first, last = results[OURS], results[PLAIN]
    for key in ("kernels", "library_calls", "launches"):
        table.add_row(key.replace("_", " "), *(f"{r[key]:,}" for r in results.values()))
    for kind in first["bytes_by_kind"]:
        table.add_row(f"GB {kind}", *(f"{r['bytes_by_kind'][kind] / 1e9:.2f}" for r in results.values()))
    table.add_row("GB in all", *(f"{r['bytes'] / 1e9:.2f}" for r in results.values()))
    for name, bandwidth in BANDWIDTH.items():
        cells = (f"{r['bytes'] / bandwidth * 1e3:.1f}" for r in results.values())
        table.add_row(f"ms on {name}, modelled", *cells)
    for what, key in (("bytes", "bytes"), ("kernels", "kernels"), ("launches", "launches")):
        ratio = f"{first[key] / last[key]:.2f}"
        table.add_row(f"{what}, ours / plain under torch.compile", ratio, *[""] * (len(results) - 1))
    return table


def main() -> int:
    """Parses the command line and prints the figures; the exit status."""
    given = command.parse(Arguments, "python -m bench.traffic")
    wrong = [arch for arch in given.arch if arch not in ARCHITECTURES]
    if wrong or not given.arch:
        raise InputError(f"--arch takes {', '.join(map(str, ARCHITECTURES))}")
    if given.batch < 2 or given.size < 75 or not given.width > 0 or given.labels < 1:
        raise InputError("--batch takes 2 or more, --size 75 or more, --width and --labels more than 0")
    from bench.codegen import assemble, generate, ordered

    results, sources = {}, {}
    for name, peer in peers(given).items():
        what = (peer.model, peer.loss, given.batch, given.size, given.labels, given.arch[0])
        if peer.compiled:
            step = generate(*what)
            launches, sources[name] = step.launches, step.sources
        else:
            launches = ordered(*what)
        results[name] = summary(launches, [p.numel() for p in peer.model.parameters()], checked=name == OURS)
    Console(width=None if sys.stdout.isatty() else 160).print(show(results, given))
    least, parts = floor(given.batch, given.size, given.width, given.labels)
    print(f"floor of the plain network's own passes: {least / 1e9:.2f} GB ({'; '.join(parts)})")
    failed: dict[int, dict[str, str]] = {}
    generated = sources["ours, torch.compile"]
    count = len(generated)
    for arch in given.arch:
        failed[arch] = assemble(generated, arch)
        print(f"{count - len(failed[arch])} of {count} generated kernels assemble for sm_{arch}")
        for name, why in failed[arch].items():
            print(f"{name}: {why}", file=sys.stderr)
    if given.json is not None:
        content = {"results": results, "floor_bytes": least, "generated": count, "failed": failed}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    command.main(main)
