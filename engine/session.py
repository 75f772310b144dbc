"""An ONNX file on a device: which one, whether all of it is there, and how a batch gets through fastest."""

import ctypes
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.model_file import INPUT, OUTPUT, Description
from pipelines.cache import cache_dir
from pipelines.errors import InputError

Place = Literal["cpu", "cuda", "tensorrt"]
Device = Literal["auto", Place]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
SLICE_PIXELS = 2 * 320 * 320  # of the pictures that a core takes at a time: their maps stay in its cache
ON_PIXELS = {"Conv", "FusedConv", "MatMul", "Gemm", "MaxPool", "Relu", "Sigmoid", "ReduceMean"}

Run = Callable[[Any], NDArray[np.float32]]


class Session:
    """A network that is ready to answer.

    Args:
        content, description: of the file, as `model_file.read_model` gives them.
        device: as `decide` gives it.
        batch_size: pictures that most batches have; a GPU records its launches for as many.
        number: of the GPU.

    Raises:
        InputError: the device does not work after all, or takes only part of the network.
    """

    def __init__(
        self, content: bytes, description: Description, device: Place, batch_size: int, number: int = 0
    ) -> None:
        self._content, self._description, self.device, self.number = content, description, device, number
        self._run = self._on_cpu() if self.device == "cpu" else self._on_gpu(batch_size)

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Probabilities [N, labels] of uint8 [N, H, W, 3]: an array, or on a GPU a tensor that is there."""
        return self._run(images)

    def _on_cpu(self) -> Run:
        """Each core takes pictures of its own: nothing waits for the slowest core at every operation.

        Fewer pictures than cores are shared by all cores instead.
        """
        cores = len(os.sched_getaffinity(0))
        single = self._session({}, threads=1)
        shared: list[ort.InferenceSession] = [single] if cores == 1 else []
        pool = ThreadPoolExecutor(cores)

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(images) < cores:
                if not shared:
                    shared.append(self._session({}, threads=cores))
                return _answer(shared[0], images)
            slices = np.array_split(images, _slices(images.shape, cores))
            return np.concatenate(list(pool.map(lambda part: _answer(single, part), slices)))

        return run

    def _on_gpu(self, batch_size: int) -> Run:
        """Pictures stay on the GPU; whole batches replay the launches recorded for one.

        Recorded launches read and write the same memory each time: a batch is copied there first, within the GPU. One
        thread does it all, whoever asks: ONNX Runtime records for each thread anew, which the work of others on the GPU
        would spoil. For the same reason it records now, before there is a pipeline.
        """
        import torch

        fixed = not self._description.any_size
        session = self._session({"enable_cuda_graph": "1"} if fixed and self.device == "cuda" else {}, threads=0)
        self._require_all(session)
        gpu = torch.device("cuda", self.number)
        labels, size = len(self._description.labels), self._description.image_size
        place = torch.zeros((batch_size, size, size, 3), dtype=torch.uint8, device=gpu) if fixed else None
        place_after = torch.zeros((batch_size, labels), device=gpu)

        worker = ThreadPoolExecutor(1, "gpu")

        def once(given: torch.Tensor) -> NDArray[np.float32]:
            if place is None:
                pixels, answers = given.contiguous(), torch.empty((len(given), labels), device=gpu)
            else:
                place[: len(given)].copy_(given)
                pixels, answers = place, place_after
            binding = session.io_binding()
            binding.bind_input(INPUT, "cuda", self.number, np.uint8, tuple(pixels.shape), pixels.data_ptr())
            binding.bind_output(OUTPUT, "cuda", self.number, np.float32, tuple(answers.shape), answers.data_ptr())
            torch.cuda.synchronize(gpu)  # ONNX Runtime has a stream of its own
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            found: NDArray[np.float32] = answers[: len(given)].cpu().numpy()
            return found

        def answer(images: Any) -> NDArray[np.float32]:
            given = torch.as_tensor(images, device=gpu)
            return np.concatenate([once(part) for part in torch.split(given, batch_size)])

        if place is not None:
            worker.submit(once, place).result()
        return lambda images: worker.submit(answer, images).result()

    def _session(self, options: dict[str, str], threads: int) -> ort.InferenceSession:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # errors
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers: list[Any] = [PROVIDERS["cpu"]]
        if self.device != "cpu":
            providers = [(PROVIDERS["cuda"], {"device_id": str(self.number), **options})]
        if self.device == "tensorrt":
            options = _tensorrt_options(self._content, self._description, self.number)
            providers.insert(0, (PROVIDERS["tensorrt"], options))
        try:
            return ort.InferenceSession(self._content, settings, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises classes of its own for each kind of trouble
            where = "" if self.device == "cpu" else f"--device {self.device}: "
            raise InputError(f"{where}ONNX Runtime cannot load the network: {_first_line(error)}") from None

    def _require_all(self, session: ort.InferenceSession) -> None:
        """Raises InputError where the provider, or a part of the network, is not on the GPU."""
        wanted = PROVIDERS[self.device]
        if wanted not in session.get_providers():
            raise InputError(f"--device {self.device}: ONNX Runtime could not start {wanted}")
        elsewhere = on_cpu(session)
        if elsewhere:
            raise InputError(
                f"--device {self.device}: {len(elsewhere)} operations would run on the CPU, {elsewhere[0]} the first"
            )


def on_cpu(session: ort.InferenceSession) -> list[str]:
    """Operations on pixels that the session has given to the CPU; sizes are always computed there."""
    return [
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == PROVIDERS["cpu"]
        for node in part.get_nodes()
        if node.op_type in ON_PIXELS
    ]


def decide(device: Device, description: Description) -> tuple[Place, str]:
    """The device to take, and why not another.

    Raises:
        InputError: the one that is asked for does not work here, or not with such a file.
    """
    wanted = "cuda" if device == "auto" else device
    if wanted == "cpu":
        return "cpu", ""
    why = missing(wanted)
    if why is None and description.precision == "int8":
        why = "an int8 file is for the CPU; python -m engine.export --precision fp16 makes one for GPUs"
    if why is None and wanted == "tensorrt" and description.any_size:
        why = "it would be built anew for each size of picture; --device cuda takes them, or a file without --any-size"
    if why is None:
        return wanted, ""
    if device == "auto":
        return "cpu", f"not cuda: {why}"
    raise InputError(f"--device {device}: {why}")


def missing(device: Literal["cuda", "tensorrt"]) -> str | None:
    """What keeps a provider from working on this machine; None where nothing does."""
    if PROVIDERS[device] not in ort.get_available_providers():
        return f"this onnxruntime has no {PROVIDERS[device]}; the package onnxruntime-gpu has"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 was not found)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no usable GPU"
    ort.preload_dlls()
    libraries = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        for name in dict.fromkeys(("cuda", device)):
            ctypes.CDLL(str(libraries / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return _first_line(error)
    return None


def _answer(session: ort.InferenceSession, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    (probabilities,) = session.run([OUTPUT], {INPUT: images})
    answer: NDArray[np.float32] = probabilities
    return answer


def _slices(shape: tuple[int, ...], cores: int) -> int:
    """Into how many a batch [N, H, W, 3] is cut: as many for each core, none of them too large."""
    pixels = shape[0] * shape[1] * shape[2]
    return min(shape[0], cores * -(-pixels // (SLICE_PIXELS * cores)))


def _tensorrt_options(content: bytes, description: Description, number: int) -> dict[str, str]:
    # A folder a file: the cache tells engines apart by names in the graph, not by its weights.
    folder = cache_dir() / "tensorrt" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": str(number),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder.parent),
        "trt_fp16_enable": "1" if description.precision == "fp16" else "0",
    }


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
