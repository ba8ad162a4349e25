"""torch.compile for functions whose shapes stay the same from some step on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Compiling:
    """Calls functions as they are or, after `compile`, compiled: one compilation for a function and its shapes.

    Shapes that change from step to step, as those of a queue that is being filled, would mean a compilation a step.
    Such calls are made with `steady=False` and run as they are.
    """

    def __init__(self) -> None:
        self._options: dict[str, Any] | None = None
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def compile(self, **options: Any) -> None:
        """Compile what is called from now on; `options` are those of torch.compile."""
        self._options = options
        self._compiled.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled, which cannot be pickled: a copy is not compiled, as one of a torch module."""
        return {"_options": None, "_compiled": {}}

    def __call__(self, function: Callable[..., Any], *args: Any, steady: bool = True) -> Any:
        """function(*args)."""
        if self._options is None or not steady:
            return function(*args)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, **self._options)
        return self._compiled[function](*args)
