"""Search among many components in bounded memory: nearest neighbours, and a shortlist of charts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from gae.data.checks import at_least_one
from gae.data.extras import optional
from gae.inference.base import Code, Inference, Solve, Sweep
from gae.inference.exact import Argmax
from gae.likelihood import AcceptsMissing, Likelihood, LinearMixture

CLOSE = 1e-4  # of squared norms: faiss neighbours whose distances differ by less are compared exactly


class Nearest(Inference):
    """The best of K points, k = argmax_k log q(k) q_r(x|k): ``Argmax()`` in bounded memory, the k-NN limit for K = N.

    If all weights and all scales are equal, it is the nearest mean (Euclidean). Means that matrix products cannot
    distinguish are compared by differences in float64; exact ties go to the first.

    Args:
        index: ``"exact"`` compares every x with every mean in blocks, with any weights and scales. ``"faiss"`` uses
            an ``IndexFlatL2`` (faiss-cpu, in float32 whatever the model's dtype), rebuilt only if the means change.
        entries: maximum number of scores that ``"exact"`` holds in memory, instead of B · K.

    Raises:
        TypeError: for a likelihood other than a ``LinearMixture`` of points.
        ValueError: with ``"faiss"``, for different weights or scales, when the best component need not be the nearest.
        ImportError: with ``"faiss"``, if it is not installed.

    >>> means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> model = LinearMixture(3, 0, (2,), means=means)
    >>> Nearest()(model, torch.tensor([[0.9, 0.2], [0.1, 1.5]])).k
    tensor([[1, 2]])
    """

    def __init__(self, index: str = "exact", entries: int = 2**22):
        super().__init__()
        if index not in ("exact", "faiss"):
            raise ValueError(f"Unknown index {index!r}. Valid indices: exact, faiss.")
        at_least_one("entries", entries)
        self.index, self.entries = index, entries
        self._built = _Cache()

    @torch.no_grad()
    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        mixture = _mixture(self, likelihood, k)
        if mixture.latent_shape.numel():
            raise TypeError(
                f"`Nearest` compares points, but the components here are charts with codes of shape "
                f"{tuple(mixture.latent_shape)}. Use `Argmax(ClosedForm())`, or `Shortlist(ClosedForm())` for many."
            )
        if self.index == "faiss":
            best = self._by_faiss(mixture, x)
            return Code(x.new_zeros(1, len(x), *mixture.latent_shape), best.unsqueeze(0))
        best, score = mixture.nearest(x, entries=self.entries)
        return Code(x.new_zeros(1, len(x), *mixture.latent_shape), best.unsqueeze(0), log_joint=score.unsqueeze(0))

    def sweep(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], bound: str) -> Sweep | None:
        return likelihood.sweep_of_points(x) if isinstance(likelihood, LinearMixture) and bound == "joint" else None

    def _by_faiss(self, mixture: LinearMixture, x: Tensor) -> Tensor:
        for name, values in (("weights", mixture.logits), ("scales", mixture.log_scale)):
            if bool((values != values[0]).any()):
                raise ValueError(
                    f"`Nearest('faiss')` finds the nearest mean, which is not the best component when {name} differ. "
                    "Use `Nearest('exact')`."
                )
        index, centre, reach = self._built(mixture.means, _faiss_index)
        rows = x.flatten(1) - centre
        square, neighbours = (torch.as_tensor(part) for part in index.search(_floats(rows), min(2, mixture.components)))
        best = neighbours[:, 0].to(x.device, torch.long)
        if square.shape[1] > 1:
            rounding = CLOSE * (rows.square().sum(1) + reach).to(square)
            tied = (square[:, 1] - square[:, 0] <= rounding).nonzero().squeeze(1).to(x.device)
            if len(tied):
                best[tied] = mixture.nearest(x[tied], entries=self.entries)[0]
        return best


class Shortlist(Inference):
    """``Argmax(inner)`` over only the charts near x: the cost grows like √K, and the best chart may be missed.

    A coarse quantiser (k-means) partitions the means of the K charts into cells, again only if the means change; each
    x is compared with the charts of the ``probes`` cells whose centres are nearest to it, as in an inverted file
    (Jégou, Douze & Schmid 2011). A chart may pass close to an x that is far from its mean, so measure the loss, as
    ``experiments/systems_mixtures.py`` does. With all cells probed, the codes are those of ``Argmax``.

    Args:
        inner: the engine for z on each chart, such as ``ClosedForm()`` or ``Ascent(...)``; None for points.
        probes: number of cells searched for each x.
        cells: number of cells, by default ⌈√K⌉; at most the number of distinct means.
        seed: of k-means.

    >>> from gae.inference import ClosedForm
    >>> model, x = LinearMixture(9, 2, (5,), means=torch.randn(9, 5), flat_prior=True), torch.randn(4, 5)
    >>> full, short = Argmax(ClosedForm())(model, x), Shortlist(ClosedForm(), probes=3)(model, x)  # 3 cells of 3
    >>> torch.equal(full.k, short.k)
    True
    """

    def __init__(self, inner: Inference | None = None, probes: int = 1, cells: int | None = None, seed: int = 0):
        super().__init__()
        if probes < 1 or (cells is not None and probes > cells):
            raise ValueError(f"Need 1 <= probes <= cells, got probes={probes}, cells={cells}.")
        self.choose = Argmax(inner)
        self.probes, self.cells, self.seed = probes, cells, seed
        self._built = _Cache()

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        mixture = _mixture(self, likelihood, k)
        near, members = self._near(mixture, x)
        slots = near.flatten().argsort(stable=True)  # slot p · B + b is the p-th cell of x_b
        counts = near.flatten().bincount(minlength=len(members)).tolist()
        parts, chosen = [], []
        charts = _restrict(mixture, members)
        for part, names, rows in zip(charts, members, slots.split(counts), strict=True):
            if len(rows):
                parts.append(self.choose.infer(part, x[rows % len(x)]))
                chosen.append(names[_required(parts[-1].k)])
        back, shape = slots.argsort(), (len(near), len(x))
        score = _in_slots([_required(part.log_joint) for part in parts], back, shape)
        best, batch = score.argmax(0, keepdim=True), torch.arange(len(x), device=x.device)
        z = _in_slots([part.z for part in parts], back, shape)[best, batch]
        solve = _merge([part.solve for part in parts], back, shape)
        return Code(
            z,
            _in_slots(chosen, back, shape)[best, batch],
            solve=None if solve is None else solve.choose(best),
            log_joint=score.gather(0, best),
        )

    def compared(self, likelihood: Likelihood, x: Num[Tensor, "B *X"]) -> Int[Tensor, " B"]:
        """Number of charts that each x is compared with, in addition to the centres of all cells."""
        near, members = self._near(_mixture(self, likelihood, None), x)
        return torch.tensor([len(names) for names in members], device=x.device)[near].sum(0)

    @torch.no_grad()
    def _near(self, mixture: LinearMixture, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The cells of each x, (P, B), and the charts in each cell."""
        number = math.ceil(math.sqrt(mixture.components)) if self.cells is None else self.cells
        if not self.probes <= number <= mixture.components:
            raise ValueError(
                f"Need probes <= cells <= K, got probes={self.probes}, cells={number} and K={mixture.components}."
            )
        centres, members = self._built(mixture.means, lambda means: _quantise(means, number, self.seed))
        distance = torch.cdist(x.flatten(1), centres, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.topk(min(self.probes, len(centres)), largest=False).indices.T, members


class _Cache:
    """Cache of a value built from a tensor, rebuilt when the tensor has other values; copies start empty."""

    def __init__(self) -> None:
        self.state: Tensor | None = None
        self.value: Any = None

    def __call__(self, state: Tensor, build: Any) -> Any:
        old = self.state
        same = old is not None and (old.device, old.dtype, old.shape) == (state.device, state.dtype, state.shape)
        if old is None or not same or not torch.equal(old, state):
            self.value = build(state.detach())
            self.state = state.detach().clone()
        return self.value

    def __deepcopy__(self, memo: Any) -> "_Cache":
        return _Cache()


class _Restricted(LinearMixture):
    """Some components of a mixture, as tensors that pass gradients on to it, with their log q(k) in the mixture."""

    def __init__(self, mixture: LinearMixture, means: Tensor, loadings: Tensor, log_scale: Tensor, weights: Tensor):
        Likelihood.__init__(self, mixture.latent_shape, mixture.event_shape, mixture.latent_prior, len(means))
        self.flat_prior, self.learn_scale, self.learn_weights = mixture.flat_prior, False, False
        self.means, self.loadings, self.log_scale = means, loadings, log_scale  # type: ignore[assignment]
        self.kept_weights = weights

    @property
    def log_weights(self) -> Float[Tensor, " K"]:
        return self.kept_weights

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The tensors used as parameters, so that the gradients of every adjoint reach them."""
        yield from (self.means, self.loadings, self.log_scale, self.kept_weights)  # type: ignore[misc]
        yield from super().parameters(recurse)


def _restrict(mixture: LinearMixture, members: Sequence[Tensor]) -> list[_Restricted]:
    order, sizes = torch.cat(list(members)), [len(names) for names in members]
    tensors = (mixture.means, mixture.loadings, mixture.log_scale, mixture.log_weights)
    parts = zip(*(tensor[order].split(sizes) for tensor in tensors), strict=True)
    return [_Restricted(mixture, *part) for part in parts]


def _quantise(means: Tensor, cells: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Centres (C, D) of cells by k-means, and the indices of each cell's means."""
    from sklearn.cluster import KMeans

    points = means.cpu().double().numpy()
    distinct = len(torch.unique(means, dim=0))
    kmeans = KMeans(min(cells, distinct), n_init=1, random_state=seed).fit(points)
    labels = torch.as_tensor(kmeans.labels_, dtype=torch.long)
    used = labels.unique()
    centres = torch.as_tensor(kmeans.cluster_centers_).to(means)[used.to(means.device)]
    return centres, [(labels == cell).nonzero().squeeze(1).to(means.device) for cell in used]


def _mixture(engine: Inference, likelihood: Likelihood, k: Tensor | None) -> LinearMixture:
    name = type(engine).__name__
    if not isinstance(likelihood, LinearMixture):
        raise TypeError(
            f"`{name}` searches among the means of a LinearMixture, got {type(likelihood).__name__}. "
            "Use `Argmax` for another likelihood with a discrete code, else `Ascent` or `Amortized`."
        )
    if isinstance(likelihood, AcceptsMissing):
        raise TypeError(
            f"`{name}` compares complete observations, got {type(likelihood).__name__}. Use `Argmax()` for points, "
            "`Argmax(ClosedForm())` for charts."
        )
    if k is not None:
        raise ValueError(f"`{name}` chooses k itself, got a given k. Use an engine for z alone, such as `ClosedForm`.")
    return likelihood


def _faiss_index(means: Tensor) -> tuple[Any, Tensor, Tensor]:
    """An index of the means about their centre, the centre, and their largest squared norm."""
    faiss = optional("faiss", "faiss", "`Nearest('faiss')`", "`Nearest('exact')` needs nothing more.")
    centre = means.mean(0)
    index = faiss.IndexFlatL2(means.shape[1])
    index.add(_floats(means - centre))
    return index, centre, (means - centre).square().sum(1).max()


def _floats(values: Tensor) -> Any:
    """A contiguous float32 array, as faiss requires."""
    return values.detach().cpu().float().contiguous().numpy()


def _required(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _in_slots(parts: Sequence[Tensor], back: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rows (1, n, ...) of all cells, reordered to (P, B, ...)."""
    return torch.cat(list(parts), 1)[0, back].unflatten(0, shape)


def _merge(parts: Sequence[Solve | None], back: Tensor, shape: tuple[int, int]) -> Solve | None:
    """The solves of all cells as one; the trace of a row that ended early repeats its last value."""
    solves = [part for part in parts if part is not None]
    if not solves:
        return None

    def gathered(name: str) -> Tensor:
        return _in_slots([getattr(solve, name) for solve in solves], back, shape)

    traces = [solve.trace for solve in solves if solve.trace is not None]
    trace = None
    if traces:
        steps = max(len(values) for values in traces)
        padded = [torch.cat([values, values[-1:].expand(steps - len(values), -1, -1)]) for values in traces]
        trace = torch.stack([_in_slots([values[t] for values in padded], back, shape) for t in range(steps)])
    return Solve(
        gathered("status"),
        gathered("steps"),
        gathered("evaluations"),
        gathered("grad_norm"),
        trace=trace,
        spread=None if solves[0].spread is None else gathered("spread"),
    )
