"""Initial codes of an ascent. Each class is an engine, and any other engine can be used instead."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.distributions import Distribution

from gae.data.checks import at_least_one, positive
from gae.inference.base import Code, Inference
from gae.likelihood import TSNE, BlendedCharts, Likelihood
from gae.likelihood.geometry import principal_components

GATES = ("residual", "centre")


class Zeros(Inference):
    """The zero code for every sample (the start of a gradient origin network).

    >>> from gae.likelihood import LinearMixture
    >>> Zeros()(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.abs().sum()
    tensor(0.)
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        return _code(x.new_zeros(1, len(x), *likelihood.latent_shape), k)


class Prior(Inference):
    """One draw per sample from the prior q_w(z), by torch's global generator, reparameterised if possible.

    >>> from gae.likelihood import LinearMixture
    >>> Prior()(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.shape
    torch.Size([1, 3, 2])
    """

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (1 if k is None else len(k), len(x))
        prior = likelihood.prior
        z = prior.rsample(torch.Size(shape)) if prior.has_rsample else prior.sample(torch.Size(shape))
        return Code(z, None if k is None else k.expand(shape))


class Given(Inference):
    """A code that is known already, for the same x at each call."""

    def __init__(self, code: Code):
        super().__init__()
        self.code = code

    @classmethod
    def density(cls, q: Distribution) -> "Given":
        """The mean of a density of batch shape (B,), with the density."""
        return cls(Code(q.mean.unsqueeze(0), q=q))

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        return self.code


class DecoderInit(Inference):
    """Random codes from ``likelihood.initial``; for the weights of a network, its own initialisation.

    Args:
        samples: S, starts per observation.

    >>> from gae import nets
    >>> from gae.likelihood import WeightLikelihood
    >>> DecoderInit(samples=2)(WeightLikelihood(nets.mlp(2, [8], 3), torch.ones(2)), torch.zeros(1, 3)).z.shape
    torch.Size([2, 1, 51])
    """

    def __init__(self, samples: int = 1):
        super().__init__()
        at_least_one("samples", samples)
        self.samples = samples

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (self.samples if k is None else len(k), len(x))
        z = likelihood.initial(shape[0] * shape[1]).unflatten(0, shape)
        return Code(z, None if k is None else k.expand(shape))


class Constant(Inference):
    """Constant codes: one for all samples, shape Z, or one per sample, shape (B, *Z).

    >>> from gae.likelihood import LinearMixture
    >>> Constant(torch.ones(2))(LinearMixture(1, 2, (5,)), torch.randn(3, 5)).z.shape
    torch.Size([1, 3, 2])
    """

    z: Tensor

    def __init__(self, z: Float[Tensor, "..."]):
        super().__init__()
        self.register_buffer("z", z.detach().clone())

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = (len(x), *likelihood.latent_shape)
        if self.z.shape not in (likelihood.latent_shape, torch.Size(shape)):
            raise ValueError(
                f"`Constant` holds codes of shape {tuple(self.z.shape)}, but this batch needs "
                f"{tuple(likelihood.latent_shape)} (one for all) or {shape} (one each)."
            )
        return _code(self.z.to(x).expand(1, *shape), k)


class PrincipalComponents(Inference):
    """The first principal components of each data set: codes (N, E) of its points, for relational likelihoods.

    Args:
        spread: standard deviation of the first component, which scales all of them.

    Raises:
        TypeError: for a likelihood whose codes do not have one row for each point of an observation.
        ValueError: for fewer features than E, or identical points.

    >>> from gae.likelihood import TSNE
    >>> z = PrincipalComponents()(TSNE(20, (5,), perplexity=4.0), torch.randn(1, 20, 5)).z
    >>> z.shape, round(float(z[..., 0].std(correction=0)), 6)
    (torch.Size([1, 1, 20, 2]), 0.0001)
    """

    def __init__(self, spread: float = 1e-4):
        super().__init__()
        positive("spread", spread)
        self.spread = spread

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        shape = likelihood.latent_shape
        if len(shape) != 2 or x.dim() < 3 or x.shape[1] != shape[0]:
            raise TypeError(
                f"`PrincipalComponents` gives a code to each point of a data set; {type(likelihood).__name__} has "
                f"codes of shape {tuple(shape)} for observations {tuple(x.shape[1:])}. Use `Zeros()` or `Prior()`."
            )
        flat = x.flatten(2).double()
        if flat.shape[2] < shape[1]:
            raise ValueError(
                f"{flat.shape[2]} features have no {shape[1]} principal components. Start from `DecoderInit()`."
            )
        scores, size, _ = principal_components(flat)
        if bool((size[:, 0] == 0).any()):
            raise ValueError("A data set whose points are all the same has no principal components.")
        first = size[:, 0] / flat.shape[1] ** 0.5
        return _code((self.spread * scores[..., : shape[1]] / first[:, None, None]).to(x.dtype).unsqueeze(0), k)


class EarlyExaggeration(Inference):
    """Early exaggeration of t-SNE: an engine run with multiplied attractions, as the ``init`` of an ascent.

    Raises:
        TypeError: for a likelihood other than ``TSNE``.

    >>> from gae.likelihood import TSNE
    >>> from gae.inference import Ascent, DeltaBarDelta
    >>> early = EarlyExaggeration(Ascent(PrincipalComponents(), DeltaBarDelta(50.0, momentum=0.5), max_steps=50))
    >>> late = Ascent(early, DeltaBarDelta(50.0, momentum=0.8), max_steps=50)
    >>> late(TSNE(20, (5,), perplexity=4.0), torch.randn(1, 20, 5)).solve.evaluations
    tensor([[100]])
    """

    def __init__(self, engine: Inference, factor: float = 12.0):
        super().__init__()
        positive("factor", factor)
        self.engine, self.factor = engine, float(factor)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not isinstance(likelihood, TSNE):
            raise TypeError(f"Only t-SNE has attractions to exaggerate, got {type(likelihood).__name__}. Use `TSNE`.")
        code = self.engine.infer(likelihood.exaggerated(self.factor), x, k)
        return replace(code, log_joint=None)  # that of the exaggerated objective


class ChartGate(Inference):
    """Initial codes (g, 0) of ``BlendedCharts``, for the ascent of a smooth LLGAE.

    The softargmax of g weights the charts by their distance to x.

    ``by="centre"``, g_k = -‖x - mean_k‖² / temperature, is the note's softargmax at temperature 1. As the temperature
    falls, the blend becomes the chart of the *nearest centre*, which need not be the best one. ``by="residual"``,
    g_k = -min_z ‖x - mean_k - z loadings_k‖² / temperature, becomes the best chart, max_k max_z: the hierarchical
    LLGAE (ledger D15). Both are differentiable in the charts and in x, and use no labels.

    Args:
        temperature: in squared data units.
        by: the distance, to each chart (``"residual"``) or to its centre (``"centre"``).

    Raises:
        TypeError: for a likelihood other than ``BlendedCharts``.

    >>> model = BlendedCharts(3, 2, (5,))
    >>> ChartGate()(model, torch.randn(4, 5)).z.shape
    torch.Size([1, 4, 5])
    """

    def __init__(self, temperature: float = 1.0, by: str = "residual"):
        super().__init__()
        if by not in GATES:
            raise ValueError(f"Unknown gate {by!r}. Valid gates: {', '.join(GATES)}.")
        self.temperature, self.by = positive("temperature", temperature), by

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not isinstance(likelihood, BlendedCharts):
            raise TypeError(
                f"`ChartGate` weights the charts of `BlendedCharts`, got {type(likelihood).__name__}. "
                "For another likelihood, start from `Zeros()` or an encoder."
            )
        if k is not None:
            raise ValueError("`ChartGate` weights all charts of `BlendedCharts`, got a given k. Leave k out.")
        distance = likelihood.to_charts(x) if self.by == "residual" else likelihood.to_centres(x)
        gate = -(distance - distance.amin(1, keepdim=True)) / self.temperature  # softargmax needs only differences
        return Code(torch.cat([gate.to(x.dtype), x.new_zeros(len(x), likelihood.width)], 1).unsqueeze(0))


def _code(z: Tensor, k: Tensor | None) -> Code:
    return Code(z) if k is None else Code(z).expand_components(k)
