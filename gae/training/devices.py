"""Device and precision of a computation, under Fabric's names."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import lightning_fabric
    from lightning_fabric.plugins.precision import Precision

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
TRUE_16 = ("16-true", "bf16-true", "16", "bf16", "transformer-engine", "transformer-engine-float16")


def lacks_float64(device: torch.device) -> bool:
    """Whether a device has no float64, as Apple's GPUs (MPS)."""
    return device.type == "mps"


def available() -> list[str]:
    """Kinds of devices of this machine that torch can use, fastest first."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in kinds.items() if is_there]


def known_device(device: str | torch.device) -> torch.device:
    """A device by its name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the fastest kind.

    Raises:
        ValueError: for another name, or a device that this machine does not have.

    >>> known_device("cpu")
    device(type='cpu')
    """
    here = available()
    if device == "auto":
        return torch.device(here[0])
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index.isdecimal() or not index):
        raise ValueError(f"Unknown device {str(device)!r}. Give cpu, cuda, cuda:1, mps or auto.")
    if kind not in here:
        raise ValueError(
            f"There is no {kind} device here: torch {torch.__version__} can use {', '.join(here)}. Give one of these, "
            "or auto."
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"There is no {device}: this machine has {torch.cuda.device_count()} CUDA devices, from 0.")
    return torch.device(kind) if kind == "cpu" else torch.device(str(device))


def known_precision(precision: str | int, device: torch.device) -> str:
    """Fabric's full name of a precision: 32, 64, bf16-mixed or 16-mixed.

    Raises:
        ValueError: for a precision that models cannot have, or that the device does not support.

    >>> known_precision(64, torch.device("cpu"))
    '64-true'
    """
    name = str(precision)
    if name in TRUE_16:
        raise ValueError(
            f"precision={name} would store parameters and log densities in 16 bits, and a log density, a sum over all "
            "elements of x, needs more digits. Use bf16-mixed (16-bit products, 32-bit sums), 32 or 64."
        )
    if name not in PRECISIONS and name not in PRECISIONS.values():
        raise ValueError(f"Unknown precision {name!r}. Give one of {', '.join(PRECISIONS)}.")
    if name == "16-mixed" and device.type == "cpu":
        raise ValueError("precision=16-mixed needs a CUDA or MPS device. On the CPU use bf16-mixed.")
    return PRECISIONS.get(name, name)


def placed(device: torch.device, uses_float64: Callable[[], bool], work: str) -> torch.device:
    """The device, or the CPU, with a warning, if the device has no float64 and the work uses it.

    Args:
        uses_float64: asked only for a device without float64.
        work: a phrase for the warning.

    >>> placed(torch.device("cpu"), lambda: True, "fit")
    device(type='cpu')
    """
    if not lacks_float64(device) or not uses_float64():
        return device
    warnings.warn(
        f"{work} needs float64, which {device.type} devices do not have: it runs on the CPU.", UserWarning, stacklevel=3
    )
    return torch.device("cpu")


def computes_in_float64(function: Callable[[], object]) -> bool:
    """Whether a call makes a float64 tensor.

    >>> x = torch.ones(2)
    >>> computes_in_float64(lambda: x.exp()), computes_in_float64(lambda: x.double().exp().float())
    (False, True)
    """
    with _Recorder() as recorder:
        function()
    return recorder.seen


class _Recorder(TorchDispatchMode):
    """Records whether an operation returns a float64 tensor."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= any(isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in tree_leaves(result))
        return result


class _Single(TorchFunctionMode):
    """Returns every 16-bit result of autocast in 32 bits: sums over elements, and log densities, need the digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _single(func(*args, **(kwargs or {})))


def _single(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(_single, value))
    is_half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value


def single(device: str | torch.device, precision: str | int = 32) -> "lightning_fabric.Fabric":
    """A Fabric of one process on one device.

    It is the same at every call, unless its precision scales the loss, and so has a state: to make one takes 16 ms.

    Raises:
        ValueError: see ``known_device`` and ``known_precision``.
    """
    chosen = known_device(device)
    name = known_precision(precision, chosen)
    return _make_single(chosen, name) if name == "16-mixed" else _shared_single(chosen, name)


def _make_single(device: torch.device, precision: str) -> "lightning_fabric.Fabric":
    return make_fabric(device, precision, devices=1 if device.index is None else [device.index])


_shared_single = lru_cache(_make_single)


def make_fabric(device: torch.device, precision: str, **options: Any) -> "lightning_fabric.Fabric":
    """A Fabric with a precision of ``known_precision``."""
    from lightning_fabric import Fabric

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `srun` command is available")  # `group_shape` knows when it is needed
        return Fabric(accelerator=device.type, plugins=[_plugin(precision, device.type)], **options)


def precision_of(fabric: "lightning_fabric.Fabric") -> str:
    """The name of a Fabric's precision, such as ``"32-true"``."""
    return str(fabric.strategy.precision.precision)


def dtype_of(precision: str | None) -> torch.dtype:
    """The dtype of models and data in a precision of ``known_precision``, or by default."""
    return torch.float64 if precision == "64-true" else torch.float32


def is_mixed(fabric: "lightning_fabric.Fabric") -> bool:
    """Whether a Fabric computes products in 16 bits."""
    return precision_of(fabric).endswith("-mixed")


def need_own_precision(fabric: "lightning_fabric.Fabric") -> None:
    """Raises ValueError for a Fabric that converts data: the model would see x rounded to another dtype."""
    precision = fabric.strategy.precision
    x = torch.zeros(1)
    if precision.convert_input(x).dtype != x.dtype:
        name = precision_of(fabric)
        raise ValueError(
            f"A Fabric with precision={name!r} converts the data themselves. Give `fit` precision={name!r} in place of "
            "the Fabric, or make it by `gae.training.launch(precision=...)`."
        )


def _plugin(precision: str, kind: str) -> "Precision":
    """Fabric's plugin of a precision, which leaves the data as they are."""
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    class Mixed(MixedPrecision):
        """Products in 16 bits, of 32-bit parameters and data, with 32-bit results."""

        @contextmanager
        def forward_context(self) -> Any:
            dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16
            # the cache of 16-bit weights would sum the gradients of all steps of an unrolled ascent in 16 bits
            with torch.autocast(self.device, dtype=dtype, cache_enabled=False), _Single():
                yield

        def convert_input(self, data: Any) -> Any:
            return data

        def convert_output(self, data: Any) -> Any:
            return data

    class Double(Precision):
        """float64 throughout: ``fit`` converts the model and the data."""

        precision: Any = "64-true"

    if precision.endswith("-mixed"):
        return Mixed(precision, kind)  # type: ignore[arg-type]
    return Double() if precision == "64-true" else Precision()
