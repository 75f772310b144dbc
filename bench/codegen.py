"""What a training step launches on a GPU and what each launch moves, found on a machine without one.

Forward, loss and backward are traced on fake tensors on the CPU, since autograd asks the driver about CUDA tensors;
the graph is moved to fake CUDA tensors, and torch.compile's code generator schedules it and generates its kernels. They
are read off before they are loaded. A generated kernel and a library call read their inputs and write their outputs
once, a view's part of them; operators of ours move what they declare (kernels.traffic).
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import pretend
from kernels import traffic

Loss = Callable[[Tensor, Tensor], Tensor]

# By names of the aten operators that a launch computes; the first kind that fits.
_KINDS = (
    ("convolution", ("convolution", "mm", "conv1x1", "scaled_product")),
    ("norm", ("batch_norm", "var_mean", "rsqrt", "sub.", "foreach_lerp")),
    ("concatenation", ("cat.", "cat_default")),
    ("pool", ("max_pool", "mean.dim")),
    ("join", ("add.", "add_.", "mul.", "relu", "threshold", "residual")),
    ("loss", ("bce", "scale_gradient", "log", "exp")),
    ("cast", ("foreach_copy", "_to_copy", "convert_element_type")),
)
KINDS = (*(kind for kind, _ in _KINDS), "other")


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch.

    Attributes:
        kind: of KINDS.
        bytes: read and written.
        library: whether it is torch's or a vendor's kernel; else it is generated, or ours.
        name: of the operator, or the operators that a generated kernel computes.
    """

    kind: str
    bytes: int
    library: bool
    name: str


@dataclass(frozen=True, slots=True)
class Generated:
    """A training step up to its gradients, and the Triton source of each generated kernel by name."""

    launches: list[Launch]
    sources: dict[str, str]


class _Stop(Exception):  # noqa: N818 -- nothing went wrong
    """Raised instead of loading the generated code, for which there is no driver."""


def generate(model: nn.Module, loss: Loss, batch: int, size: int, labels: int, arch: int = 90) -> Generated:
    """The step of a model in training, for a GPU that need not be there: bfloat16 autocast, channels-last.

    Args:
        model: without dropout. Its tensors are only asked for their shapes.
        loss: of logits and targets [batch, labels], float32.
        batch, size, labels: of the pictures and targets.
        arch: compute capability, of bench.pretend.PROPERTIES.
    """
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering

    found: list[Launch] = []
    code: list[str] = []

    def stop(self: Any) -> None:
        written = self.codegen()[0]
        code.append(str(getattr(written, "value", written)))
        for node in self.scheduler.nodes:
            found.extend(_of_node(node))
        raise _Stop

    options = {"compile_threads": 1, "fx_graph_cache": False}
    with pretend.gpu(arch), inductor.patch(options), mock.patch.object(GraphLowering, "compile_to_module", stop):
        graph, inputs, mode = _traced(model, loss, batch, size, labels)
        with mode:
            try:
                compile_fx_inner(graph, inputs)
            except Exception:
                if not code:  # else it is what stopped it
                    raise
    sources = dict(re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", code[0], re.DOTALL))
    return Generated(found, sources)


def ordered(model: nn.Module, loss: Loss, batch: int, size: int, labels: int, arch: int = 90) -> list[Launch]:
    """The same step without a code generator, as torch's operators order it, eagerly or recorded in a CUDA graph.

    A launch for each operation that is no view, several for one of many tensors; inputs and outputs are moved once.
    """
    with pretend.gpu(arch):
        graph, _ = _on_cpu(model, loss, batch, size, labels, FakeTensorMode(allow_non_fake_inputs=True), {})
        return [launch for node in graph.graph.nodes for launch in _of_operator(node)]


def _of_operator(node: Any) -> Iterator[Launch]:
    """Launches of a node of a graph of torch's operators."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or _is_view(node.target):
        return
    name, given = str(node.target), pytree.tree_map(_value, (node.args, node.kwargs))
    if schema.name.startswith("manylabel::"):
        yield from _declared(schema.name, given[0])
        return
    results = _tensors(_value(node))
    lists = [_tensors(value) for value in given[0] if isinstance(value, (list, tuple)) and _tensors(value)]
    if schema.name.startswith("aten::_foreach"):
        lists += [results] if results else []
        launches = multi_tensor_launches([t.numel() for t in lists[0]], len(lists))
        # What is changed in place is read, unless it is only copied to, and written.
        writes = 0 if results or "copy" in name else sum(map(_bytes, lists[0]))
        moved = sum(map(_bytes, (t for one in lists for t in one))) + writes
        for number in range(launches):
            yield Launch(kind_of([name]), moved // launches + (number < moved % launches), True, name)
    elif results:
        moved = sum(map(_bytes, {id(t): t for t in [*_tensors(given), *results]}.values()))
        yield Launch(kind_of([name]), moved, True, name)


def multi_tensor_launches(sizes: Sequence[int], lists: int) -> int:
    """Launches of one operation on lists of tensors: torch packs so many tensors, and so many blocks, into each.

    Source: aten/src/ATen/native/cuda/MultiTensorApply.cuh.
    """
    tensors = (110, 64, 48, 36, 30)[lists - 1]
    blocks = sum(math.ceil(size / 65536) for size in sizes)
    return max(math.ceil(len(sizes) / tensors), math.ceil(blocks / 320))


def _bytes(t: Tensor) -> int:
    return t.numel() * t.itemsize


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]


def _value(argument: Any) -> Any:
    """The fake tensors of a graph's node; anything else as it is."""
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else argument


def _declared(name: str, arguments: tuple[Any, ...]) -> Iterator[Launch]:
    """Launches of an operator of ours."""
    for one in traffic.passes(name, arguments):
        yield Launch(kind_of([name]), one.read + one.written, one.library, name)


def _is_view(operator: Any) -> bool:
    """Whether the operator returns memory that is there already, or only takes some."""
    aliases = any(a.alias_info is not None and not a.alias_info.is_write for a in operator._schema.returns)
    return aliases or operator._schema.name in (
        "aten::empty",
        "aten::empty_like",
        "aten::detach",
        "aten::empty_strided",
    )


def _traced(model: nn.Module, loss: Loss, batch: int, size: int, labels: int) -> tuple[Any, list[Tensor], Any]:
    """The step's graph on fake CUDA tensors, its inputs, and the mode that these belong to."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph, given = _on_cpu(model, loss, batch, size, labels, mode, select_decomp_table())
    with mode:
        graph.graph.eliminate_dead_code()
        graph.graph.set_codegen(torch.fx.graph.CodeGen())
        for node in graph.graph.nodes:
            if node.kwargs.get("device") is not None:
                node.update_kwarg("device", torch.device("cuda:0"))
        graph.recompile()
        inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in given]
        with torch.no_grad():
            FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
    return graph, inputs, mode


def _on_cpu(
    model: nn.Module, loss: Loss, batch: int, size: int, labels: int, mode: FakeTensorMode, decompositions: Any
) -> tuple[Any, list[Tensor]]:
    """The step's graph on fake CPU tensors, and its inputs."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def blank(t: Tensor) -> Tensor:
        new = torch.empty(t.shape, dtype=t.dtype)
        return new.to(memory_format=torch.channels_last) if t.dim() == 4 else new

    def step(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = torch.func.functional_call(model, (parameters, buffers), (x,))
        value = loss(logits.float(), y)
        return value, *torch.autograd.grad(value, list(parameters.values()))

    with mode:
        parameters = {name: blank(p).requires_grad_() for name, p in model.named_parameters()}
        buffers = {name: blank(b) for name, b in model.named_buffers()}
        x = torch.empty(batch, 3, size, size).to(memory_format=torch.channels_last)
        given = (parameters, buffers, x, torch.empty(batch, labels))
        graph = make_fx(step, decomposition_table=decompositions, tracing_mode="fake")(*given)
    return graph, pytree.tree_leaves(given)


def _of_node(node: Any) -> Iterator[Launch]:
    """Launches of a node of the code generator's schedule."""
    from torch._inductor import ir
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
        return
    operator = getattr(node.node, "op_overload", None)
    name = "" if operator is None else operator._schema.name
    if name.startswith("manylabel::"):
        yield from _declared(name, _arguments(node.node))
        return
    library = isinstance(node, ExternKernelSchedulerNode)
    parts = [part.node for part in node.get_nodes() if part.node is not None]
    origins = sorted({str(origin.target) for part in parts for origin in part.origins})
    called = [name or str(getattr(node.node, "python_kernel_name", None))] if library else []
    yield Launch(
        kind_of([*called, *origins]), node.get_read_write_buffers_sizes(), library, ", ".join(called or origins)
    )


def kind_of(operators: Iterable[str]) -> str:
    """Kind of a launch that computes these operators."""
    names = list(operators)
    return next((kind for kind, marks in _KINDS if any(m in name for m in marks for name in names)), "other")


def _arguments(call: Any) -> tuple[Any, ...]:
    """Of an operator's call, as fake tensors."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    arguments, _ = call.unflatten_args(call.inputs, call.constant_args)

    def fake(value: Any) -> Any:
        return ir.ir_node_to_tensor(value) if isinstance(value, ir.IRNode) else value

    with V.fake_mode:
        return tuple(pytree.tree_map(fake, arguments, is_leaf=lambda value: isinstance(value, ir.IRNode)))


def assemble(sources: dict[str, str], arch: int) -> dict[str, str]:
    """Assembles generated kernels for a GPU; what went wrong by the name of the kernel, empty when all is well."""
    from torch._inductor.codecache import PyCodeCache

    failed = {}
    with pretend.gpu(arch), tempfile.TemporaryDirectory() as folder:
        for name, source in sources.items():
            path = Path(folder) / f"{name}.py"
            path.write_text(source)
            try:
                module = PyCodeCache.load_by_key_path(f"{name}_{arch}", str(path))
                tuner = getattr(module, name)
                config = tuner.configs[0]
                meta = tuner._create_compile_meta(config)
                source_of = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
                options = tuner._create_compile_options(config, meta)
                triton.compile(source_of, target=GPUTarget("cuda", arch, 32), options=options)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return failed
