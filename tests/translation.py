"""One translation to ONNX for tests that export the same network again and again."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

from engine.to_onnx import to_onnx


def translating_once() -> Callable[..., Any]:
    """In place of `engine.to_onnx.to_onnx` where all that is exported is one network: what it made the first time."""
    networks: list[Any] = []

    @cache
    def made(size: int, half: bool, any_size: bool) -> Any:
        return to_onnx(networks[0], size, half, any_size)

    def translated(network: Any, size: int, half: bool = False, any_size: bool = False) -> Any:
        networks.append(network)
        return copy.deepcopy(made(size, half, any_size))

    return translated
