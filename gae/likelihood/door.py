"""Argument checks of public calls: shapes in every call, values only in the outermost one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Size, Tensor

from gae.data.mapped import Mapped, blocks

Function = TypeVar("Function", bound=Callable[..., Any])

CODES = ("log_joint", "update_codes", "divergence")  # methods (x, z, ...) of a likelihood that are checked
OBSERVATIONS = (  # ... and methods (x, ...)
    *("bind", "posterior", "log_responsibilities", "log_evidence", "mode"),
    *("relation", "log_components", "to_centres", "to_charts"),
)


class _Call(threading.local):
    """Whether a checked call is active in this thread."""

    inside = False


_CALL = _Call()


class door:
    """Context manager that checks x on entry; nested doors check only shapes.

    The outermost door of a thread makes one pass over the values of x. Inner loops and nested calls only compare
    shapes. Values are not checked under ``torch.vmap``, which hides them.

    Args:
        likelihood: defines the accepted shapes, dtypes and values.
        x: (B, *X).
        support: whether values must lie in the support of q_r(x|z), as required to score x.

    Raises:
        ValueError, TypeError: for x of a wrong shape, dtype or device, empty, non-finite or outside the support.
    """

    def __init__(self, likelihood: Any, x: Tensor, support: bool = True):
        self.likelihood, self.x, self.support = likelihood, x, support

    def __enter__(self) -> bool:
        """Whether this is the outermost door."""
        self.before = _CALL.inside
        self.likelihood.check_shape(self.x)
        if not self.before:
            self.likelihood.check_device(self.x)
            check_contents(self.likelihood, self.x, self.support)
        _CALL.inside = True
        return not self.before

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _CALL.inside = self.before


@contextmanager
def known_values() -> Iterator[None]:
    """Context manager of calls on observations whose values have been checked: doors inside it check only shapes."""
    before, _CALL.inside = _CALL.inside, True
    try:
        yield
    finally:
        _CALL.inside = before


def check_contents(likelihood: Any, x: Tensor, support: bool = True) -> None:
    """Raises TypeError or ValueError for bad values of x; those of a tensor in a file are read block by block."""
    if not isinstance(x, Mapped):
        likelihood.check_values(x)
        if support and not hidden(x):
            likelihood.check_support(x)
        return
    for start, block in blocks(x):
        try:
            check_contents(likelihood, block, support)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (Rows are counted from {start}.)" if start else str(error)) from None


def checked(function: Function) -> Function:
    """Decorator that checks x in a function (likelihood, x, ...) or a likelihood's method (x, ...)."""

    @wraps(function)
    def guarded(likelihood: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with door(likelihood, x):
            return function(likelihood, x, *args, **kwargs)

    return guarded  # type: ignore[return-value]


def checked_codes(function: Function) -> Function:
    """Decorator that checks x and the codes in a likelihood's method (x, z, k)."""

    @wraps(function)
    def guarded(likelihood: Any, x: Tensor, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        with door(likelihood, x) as outermost:
            check_codes(likelihood, z, args[0] if args else kwargs.get("k"), len(x), outermost)
            return function(likelihood, x, z, *args, **kwargs)

    return guarded  # type: ignore[return-value]


def checked_decoding(function: Function) -> Function:
    """Decorator of a likelihood's ``forward`` (z, k), which rejects codes whose last dimensions are not Z."""

    @wraps(function)
    def guarded(likelihood: Any, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        expected = likelihood.latent_shape
        if not isinstance(z, Tensor):
            raise TypeError(f"Codes must be a torch.Tensor of shape (*L, {dims(expected)}), got {type(z).__name__}.")
        if z.dim() < len(expected) or z.shape[z.dim() - len(expected) :] != expected:
            raise ValueError(f"Codes must have shape (*L, {dims(expected)}), got {tuple(z.shape)}.")
        return function(likelihood, z, *args, **kwargs)

    return guarded  # type: ignore[return-value]


def guard(kind: type) -> None:
    """Decorates the methods of a class that accept observations or codes with their argument checks."""
    wrappers = {
        "forward": checked_decoding,
        **dict.fromkeys(CODES, checked_codes),
        **dict.fromkeys(OBSERVATIONS, checked),
    }
    for name, wrapper in wrappers.items():
        if name in vars(kind):
            setattr(kind, name, wrapper(vars(kind)[name]))


def check_codes(likelihood: Any, z: Tensor, k: Tensor | None, batch: int, values: bool) -> None:
    """Raises ValueError or TypeError unless z is (S, B, *Z) and k (S, B), or broadcasts to it, with 0 <= k < K."""
    expected = likelihood.latent_shape
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch.Tensor of shape (S, B, {dims(expected)}), got {type(z).__name__}.")
    if (
        z.dim() != len(expected) + 2
        or z.shape[2:] != expected
        or (z.shape[1] != batch and 1 not in (z.shape[1], batch))
    ):
        raise ValueError(
            f"z must have shape (S, B, {dims(expected)}) with B = {batch}, got {tuple(z.shape)}. "
            "One code per observation becomes S = 1 by `z.unsqueeze(0)`."
        )
    if k is not None:
        check_components(likelihood, k, batch, values)


def check_components(likelihood: Any, k: Tensor, batch: int, values: bool) -> None:
    """Raises ValueError or TypeError unless k holds whole numbers 0 ... K - 1 in a shape (S, 1) or (S, B)."""
    if not isinstance(k, Tensor) or k.dtype != torch.long:
        kind = k.dtype if isinstance(k, Tensor) else type(k).__name__
        raise TypeError(f"k must be a torch.Tensor of dtype torch.long, got {kind}.")
    if k.dim() != 2 or (k.shape[1] not in (1, batch) and batch != 1):
        raise ValueError(f"k must have shape (S, 1) or (S, B) with B = {batch}, got {tuple(k.shape)}.")
    if values and likelihood.components and k.numel() and not hidden(k):
        low, high = (int(bound) for bound in k.aminmax())
        if low < 0 or high >= likelihood.components:
            raise ValueError(f"k must lie in 0 ... {likelihood.components - 1}, got {low} ... {high}.")


def need_no_component(likelihood: Any, k: Tensor | None) -> None:
    """Raises ValueError if a discrete code k is given to a likelihood without one."""
    if k is not None:
        name = type(likelihood).__name__
        raise ValueError(f"{name} has no discrete code, got k. Omit k, or use a mixture such as LinearMixture.")


def hidden(x: Tensor) -> bool:
    """Whether ``torch.vmap`` hides the values of x."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def dims(shape: Size) -> str:
    """A shape without its parentheses."""
    return ", ".join(map(str, shape))
