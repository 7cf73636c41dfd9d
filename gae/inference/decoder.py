"""Checks that a decoder is a deterministic, differentiable function of each code, as gradient ascent requires."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Size, Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gae.likelihood import DecoderLikelihood, Likelihood, Measured, PartiallyObserved, Relational, WeightLikelihood
from gae.likelihood.door import hidden

NONDETERMINISTIC_LAYERS = (_BatchNorm, _DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.RReLU)
AGAIN = 16  # a decoder whose settings have not changed is checked in one of so many ascents
ROWS = 3  # codes decoded to test whether a decoder is a deterministic function of each
REPEATS = 30  # decodings that must agree if a decoder draws random numbers, since dropout may be rare
REGIONS = 16  # codes at which a decoder's slope is compared, to tell a piecewise linear one from an affine one
SLACK, MOST = 1e3, 0.03  # how far two decodings may differ, in units of rounding and of the largest output
TENSOR_FLOAT = 2.0**-11  # rounding of float32 products on a GPU that may use TensorFloat-32
GOLDEN = 0.6180339887498949
_PASSED: WeakKeyDictionary[Likelihood, tuple[list[Any], int]] = WeakKeyDictionary()  # settings, ascents since the check


@contextmanager
def twice_differentiable(likelihood: Likelihood) -> Iterator[None]:
    """Runs attention and recurrent layers by kernels that are twice differentiable, unlike the fused ones."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in likelihood.modules())
    cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), cudnn:
        yield


def thrice_differentiable(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function with layers whose third derivatives are right too, which the gradient of a curvature takes."""

    def plain(at: Tensor) -> Tensor:
        with _PlainNorms():
            return function(at)

    return plain


class _PlainNorms(TorchFunctionMode):
    """Normalisation by elementary operations.

    Torch's layer and instance normalisation have wrong third derivatives (pytorch's issues 175754 and 186256), and its
    group normalisation has no forward derivative inside ``torch.vmap`` for some layouts of its input.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PLAIN_NORMS.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    normalised = _normalised(x, tuple(range(-len(shape), 0)), eps)
    scaled = normalised if weight is None else normalised * weight
    return scaled if bias is None else scaled + bias


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:  # then it is affine
        return functional.instance_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _per_channel(_normalised(x, tuple(range(2, x.dim())), eps), weight, bias)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = x.unflatten(1, (num_groups, -1))
    return _per_channel(_normalised(groups, tuple(range(2, groups.dim())), eps).flatten(1, 2), weight, bias)


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    weight, bias = (None if each is None else each.view(-1, *[1] * (x.dim() - 2)) for each in (weight, bias))
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


PLAIN_NORMS = {
    functional.layer_norm: _layer_norm,
    functional.instance_norm: _instance_norm,
    functional.group_norm: _group_norm,
}


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_nondeterministic(module: nn.Module) -> bool:
    """Whether a layer's output depends on the batch or changes from call to call."""
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    if isinstance(module, _DropoutNd):
        return module.training and module.p > 0
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.training and module.dropout > 0
    return module.training and isinstance(module, nn.RReLU)


def need_fixed(
    likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], subject: str = "An ascent"
) -> None:
    """Raises ValueError unless the decoder is deterministic (``check_fixed``).

    A likelihood that has passed is checked again when a module or a plain attribute of one (training mode, dropout
    probability, a flag) has changed, and otherwise in one of 16 calls.
    """
    if hidden(z):
        return
    settings = [value for module in likelihood.modules() for value in _settings(module)]
    known, ascents = _PASSED.get(likelihood, (None, 0))
    if known != settings or ascents >= AGAIN:
        _PASSED.pop(likelihood, None)
        check_fixed(likelihood, x, z, subject)
        ascents = 0
    _PASSED[likelihood] = settings, ascents + 1


def _settings(module: nn.Module) -> list[Any]:
    return [id(module), *(value for value in vars(module).values() if isinstance(value, (bool, int, float, str)))]


@torch.no_grad()
def check_fixed(likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], subject: str) -> None:
    """Raises ValueError for a decoder that is random, or whose output for a code depends on the rest of its batch.

    Three codes near z are decoded, then two of them in reverse order, and one alone: the outputs of a deterministic
    function of each code agree up to rounding. A decoder that draws random numbers is decoded more often, since it may
    use them rarely. The state of the random generator is restored. Codes that are network weights are decoded
    separately by construction, so only twice; relational likelihoods have no decoder.
    """
    if isinstance(likelihood, Relational) or not z.shape[2:].numel():
        return
    codes = _spread(z, 1 if _is_network(likelihood) else ROWS)
    index = list(range(len(codes)))
    parts = [index[:0:-1], index[:1]] if len(index) > 1 else [index]  # every code is missing from one
    with torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
        with _RandomCalls() as calls:
            outputs = _decoded(likelihood, x, codes, index)
        separate = all(_same(outputs[part], _decoded(likelihood, x, codes[part], part)) for part in parts)
        if separate and not calls.is_random:
            return
        repeats = range(REPEATS if calls.is_random else 1)
        fixed = all(_same(outputs, _decoded(likelihood, x, codes, index)) for _ in repeats)
    if separate and fixed:
        return
    name = type(likelihood).__name__
    if fixed:
        raise ValueError(
            f"{subject} needs a decoder whose output for a code does not depend on the rest of its batch; that of "
            f"{name} changes when some of three codes are decoded alone. Avoid batch statistics: use GroupNorm or "
            "InstanceNorm, or call `.eval()` for fixed statistics."
        )
    raise ValueError(
        f"{subject} needs a deterministic decoder; that of {name} gives a different output each time. Remove dropout "
        "and noise: call `.eval()`, pass `training=self.training` to functional dropout, or draw the noise once and "
        "keep it."
    )


class _RandomCalls(TorchDispatchMode):
    """Records whether any operation in its context draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.is_random = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.is_random |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def need_gradient(likelihood: Likelihood, z: Float[Tensor, "S B *Z"]) -> None:
    """Raises ValueError if no gradient reaches a code through its decoder: an ascent would follow only the prior."""
    if not isinstance(likelihood, DecoderLikelihood) or _is_network(likelihood) or not z.shape[2:].numel():
        return
    with torch.enable_grad(), torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
        code = z.detach()[0, :1].clone().requires_grad_()
        output = _outputs(likelihood, code)
        if output.requires_grad and torch.autograd.grad(output.sum(), code, allow_unused=True)[0] is not None:
            return
    raise ValueError(
        f"No gradient reaches a code through the decoder of {type(likelihood).__name__}, so an ascent would "
        "follow only the prior. Remove `detach`, `torch.no_grad`, rounding to integers and numpy inside the decoder."
    )


def is_piecewise_linear(likelihood: Likelihood, z: Float[Tensor, "S B *Z"]) -> bool:
    """Whether the decoder's output has zero curvature everywhere, but slopes that differ between codes."""
    if not isinstance(likelihood, DecoderLikelihood) or _is_network(likelihood) or not z.shape[2:].numel():
        return False
    shape = Size((REGIONS, *z.shape[2:]))
    scale = torch.logspace(-1, 1.5, REGIONS, dtype=z.dtype, device=z.device).reshape(-1, *[1] * (z.dim() - 2))
    pattern = _pattern(shape, z.dtype, z.device)
    with torch.enable_grad(), torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
        codes = (z.detach()[0, :1] + scale * (pattern - 0.5)).requires_grad_()
        output = _outputs(likelihood, codes)
        weight = _pattern(output[:1].shape, output.dtype, output.device) - 0.5
        if not output.requires_grad:
            return False
        (slope,) = torch.autograd.grad((output * weight).sum(), codes, create_graph=True)
        curvature = None
        if slope.requires_grad:
            along = (slope * (pattern + 0.5)).sum()
            (curvature,) = torch.autograd.grad(along, codes, allow_unused=True)
    if curvature is not None and bool((curvature != 0).any()):
        return False
    slope = slope.detach()
    return not _same(slope, slope[:1].expand_as(slope))


def _is_network(likelihood: Likelihood) -> bool:
    inner = likelihood.likelihood if isinstance(likelihood, (Measured, PartiallyObserved)) else likelihood
    return isinstance(inner, WeightLikelihood)


def _spread(z: Float[Tensor, "S B *Z"], rows: int) -> Float[Tensor, "n *Z"]:
    """Distinct codes near the first of z, with no entry below its own."""
    return z.detach()[0, :1] + _pattern(Size((rows, *z.shape[2:])), z.dtype, z.device)


@lru_cache(maxsize=8)
def _pattern(shape: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Distinct numbers in (0, 1): fractional parts of multiples of the golden ratio."""
    steps = np.arange(1, shape.numel() + 1)  # NumPy's floats have 64 bits on every device
    precision = "float64" if dtype == torch.float64 else "float32"  # other work must not need float64, which MPS lacks
    return torch.from_numpy((steps * GOLDEN % 1.0).astype(precision)).to(dtype).to(device).view(shape)


def _outputs(likelihood: DecoderLikelihood, codes: Float[Tensor, "n *Z"]) -> Float[Tensor, "n ..."]:
    k = torch.zeros(1, 1, dtype=torch.long, device=codes.device) if likelihood.components else None
    return likelihood.outputs(codes.unsqueeze(0), k)[0]


def _decoded(likelihood: Likelihood, x: Tensor, codes: Tensor, index: Sequence[int]) -> Float[Tensor, "n ..."]:
    """Decoder outputs at codes or, for a likelihood without a decoder, their log joint density with x[index]."""
    if isinstance(likelihood, DecoderLikelihood):
        return _outputs(likelihood, codes)
    return likelihood.log_joint(x[[i % len(x) for i in index]], codes.unsqueeze(0))[0]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two decodings agree up to rounding."""
    if a.shape != b.shape:
        return False
    eps = TENSOR_FLOAT if a.is_cuda and a.dtype == torch.float32 else torch.finfo(a.dtype).eps
    slack = min(SLACK * eps, MOST)
    if bool((a - b).abs().max() <= slack * a.abs().max()):
        return True
    largest = torch.where(torch.isfinite(a), a, 0).abs().max()
    return bool(torch.isclose(a, b, rtol=0.0, atol=slack * float(largest), equal_nan=True).all())
