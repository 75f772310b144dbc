"""Checkpoints: written behind the training's back, whole or not at all, and known when they are damaged.

A checkpoint is a file of torch.save: a zip archive whose parts carry a CRC-32, which torch writes and does not look at
again; `load_checkpoint` does. The one before the newest stays beside it as previous.pt.
"""

import contextlib
import os
import pickle
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from engine.run import Run
from pipelines.cache import replace_file
from pipelines.errors import InputError
from pipelines.progress import say

State = dict[str, Any]


class Checkpoints:
    """Writes states of a run in a thread of its own.

    Training waits for a copy of the tensors on their device, and for the write before of the same file, if that is not
    done. A write that fails is told and tried again with the next; the file there stays as it was, and training goes
    on. Files are written in the order of their states, none before one that failed: what is on the disk fits together.

    Args:
        run: its folder of checkpoints is there, and nobody else writes to it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writes: dict[Path, Future[InputError | None]] = {}
        self._rooms: dict[Path, _Room] = {}
        self._failed: dict[Path, _Copy] = {}

    def save(self, state: State, path: Path) -> None:
        """Leaves a copy of the state to the writer."""
        for other, write in self._writes.items():
            if other == path or self._failed:  # the writer may be trying again to write what is about to change
                write.result()
        self._failed.pop(path, None)
        copy = self._rooms.setdefault(path, _Room()).keep(state)
        self._writes[path] = self._writer.submit(self._write, copy, path)

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            InputError: the last write failed.
        """
        failures = [write.result() for write in self._writes.values()]
        if self._failed:
            raise next(failure for failure in reversed(failures) if failure is not None)

    def _write(self, copy: "_Copy", path: Path) -> InputError | None:
        for file, kept in (*self._failed.items(), (path, copy)):
            try:
                save_checkpoint(file, kept.on_cpu(), self.run.previous if file == self.run.last else None)
            except InputError as error:
                self._failed[path] = copy
                say(f"{error}; training goes on, what was saved before is whole")
                return error
            self._failed.pop(file, None)
        return None


@cache
def _stream(device: torch.device) -> "torch.cuda.Stream":
    """One for good: torch hands few out in turn, and another might be the one that steps are recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Copy:
    """A state whose tensors nobody writes to, on the device where they were."""

    def __init__(self, leaves: list[Any], form: Any) -> None:
        self.leaves, self.form = leaves, form
        self.devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
        self.made = {device: torch.cuda.current_stream(device).record_event() for device in self.devices}

    def on_cpu(self) -> Any:
        """The state in the CPU's memory. On a GPU it is fetched beside the stream that trains, not in it."""
        leaves = self.leaves
        for device in self.devices:
            stream = _stream(device)
            stream.wait_event(self.made[device])
            with torch.cuda.stream(stream):
                leaves = [t.cpu() if isinstance(t, Tensor) and t.device == device else t for t in leaves]
        return tree_unflatten(leaves, self.form)


class _Room:
    """Memory for copies of a state, kept from one to the next: to take it anew costs more than to copy."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    @torch.no_grad()
    def keep(self, state: State) -> _Copy:
        leaves, form = tree_flatten(state)
        given = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        if [_kind(t) for t in given] != [_kind(t) for t in self.tensors]:
            self.tensors = [torch.empty_like(t) for t in given]
        torch._foreach_copy_(self.tensors, given)
        kept = iter(self.tensors)
        return _Copy([next(kept) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def save_checkpoint(path: Path, state: State, previous: Path | None = None) -> None:
    """Tensors and plain values to a file, whole or not at all.

    Args:
        previous: where what is at `path` goes.

    Raises:
        InputError: the disk is full, or fails otherwise.
    """
    try:
        with replace_file(path) as temporary:
            torch.save(state, temporary)
            if previous is not None and path.exists():
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                # No second name for the same file: what damages one is not to damage the other. For a moment there is
                # no file at `path`; the one before is the newest then.
                path.replace(previous)
    except (OSError, RuntimeError) as error:  # the latter is what torch makes of a failed write
        why = getattr(error, "strerror", None) or "is the disk full?"
        raise InputError(f"{path}: cannot be written: {why}") from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> State:
    """What `save_checkpoint` wrote.

    Raises:
        InputError: no such file, or it is damaged or holds more than tensors and plain values.
    """
    try:
        damaged = _damaged_part(path)
        state = None if damaged else torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        refused = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        why = "refused: it holds code beside tensors and plain values" if refused else "UnpicklingError"
        raise InputError(f"{path}: not a usable checkpoint ({why})") from None
    except Exception as error:  # whatever a damaged file makes of the reader
        raise InputError(f"{path}: not a usable checkpoint ({type(error).__name__})") from None
    if damaged:
        raise InputError(f"{path}: not a usable checkpoint (damaged: {damaged} does not fit its checksum)")
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a usable checkpoint (it holds a {type(state).__name__})")
    return state


def _damaged_part(path: Path) -> str | None:
    """The first part of the archive that does not fit its CRC-32. Files of older torch, weights to start from, have
    none."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()


def newest_checkpoint(run: Run, device: torch.device | str = "cpu") -> State | None:
    """The state of last.pt, or if that is damaged of previous.pt, which takes its place; None where there is neither.

    Raises:
        InputError: what there is, is damaged.
    """
    if not run.last.exists():
        if not run.previous.exists():
            return None
        run.previous.replace(run.last)  # killed between two renames
    try:
        return load_checkpoint(run.last, device)
    except InputError as error:
        if not run.previous.exists():
            raise
        state = load_checkpoint(run.previous, device)
        say(f"{error}; the one before it, {run.previous.name}, is taken")
    run.last.replace(run.last.with_name("damaged.pt"))
    run.previous.replace(run.last)  # or else the next write would put the damaged one in its place
    return state


def remove_remains(run: Run) -> None:
    """Removes what a killed process left half written."""
    for folder in (run.last.parent, run.folder):
        for path in folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
