"""Maximal activation: the observation that a unit of an autoencoder's network responds to most (ledger D20)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, Constant, Detach, Inference
from gae.likelihood import Activation, CategoricalSequence, DecoderLikelihood
from gae.systems import SYSTEMS, NormalEncoder
from gae.systems.latents import THRESHOLD, boxed_adam


@dataclass(frozen=True)
class Maximum:
    """Where an ascent on a unit's activation ended."""

    image: Float[Tensor, "*X"]
    activation: float
    start: float  # the activation in the middle of the value range, where the first ascent starts


class Units(nn.Module):
    """Observations (N, *X) to the activations (N, U) of one layer of an autoencoder that has an encoder network.

    The activation of a channel is its mean over positions. A layer of the decoder is seen through the encoder: at the
    mean of q(z|x), or at the code of a deterministic encoder. The autoencoder is copied, and never touched.

    Args:
        model: its engine is ``Amortized``, or an ``Ascent`` that starts there, around a ``NormalEncoder`` or a module
            that returns codes.
        layer: a name out of ``model.named_modules()``; the encoder network's own output unless given.

    Raises:
        TypeError: for a model without an encoder network, or of sequences of classes, in which no gradient exists.
        ValueError: for a name that is no layer; the valid ones are listed.

    >>> from gae.systems import build
    >>> units = Units(build("vae", (1, 8, 8), latent=2, hidden=(16,)))
    >>> units.layer, units(torch.zeros(5, 1, 8, 8)).shape, units.meaning(2)
    ('inference.guide.network', torch.Size([5, 4]), 'log scale of z[0]')
    """

    def __init__(self, model: Autoencoder, layer: str | None = None):
        super().__init__()
        if isinstance(model.likelihood, CategoricalSequence):
            raise TypeError(
                "The model's observations are classes (such as text), and a unit's activation has no gradient in them. "
                "Take a model of images or other real numbers."
            )
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.encoder, self.density = _encoder(self.model.inference)
        self.layer = self.encoder if layer is None else layer
        sizes = self._layers()
        if self.layer not in sizes:
            named = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            raise ValueError(f"No layer {self.layer!r}. Choose one of these (with so many units): {named}.")
        self.size = sizes[self.layer]

    def forward(self, x: Num[Tensor, "N *X"]) -> Float[Tensor, "N U"]:
        output = self._seen(x, [self.layer])[self.layer]
        return output.flatten(2).mean(2) if output.dim() > 2 else output

    def check(self, unit: int) -> None:
        """Raises ValueError for a unit that the layer has not."""
        if not 0 <= unit < self.size:
            raise ValueError(f"{self.layer} has {self.size} units, 0 ... {self.size - 1}; got unit {unit}.")

    def meaning(self, unit: int) -> str | None:
        """What a unit of the encoder's output says of the code z, flattened; None for other layers."""
        if self.layer != self.encoder:
            return None
        if not self.density:
            return f"z[{unit}]"
        half = self.size // 2
        return f"mean of z[{unit}]" if unit < half else f"log scale of z[{unit - half}]"

    def _layers(self) -> dict[str, int]:
        """Layers that an observation passes, in their order, and how many units each has."""
        likelihood = self.model.likelihood
        like = next(likelihood.parameters(), torch.empty(()))
        with torch.no_grad():
            seen = self._seen(
                like.new_zeros(1, *likelihood.event_shape), [name for name, _ in self.model.named_modules()]
            )
        return {name: output.shape[1] for name, output in seen.items() if output.dim() > 1}

    def _seen(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What the named modules put out on the way from x to the decoder's output."""
        found: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            if isinstance(output, Tensor):
                found[name] = output

        modules = [(name, self.model.get_submodule(name)) for name in names]
        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name, module in modules
        ]
        try:
            self._run(x)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _run(self, x: Tensor) -> None:
        output = self.model.get_submodule(self.encoder)(x)
        if not isinstance(output, Tensor):
            raise TypeError(f"{self.encoder} returns {type(output).__name__}: a network that returns codes is needed.")
        code = output.chunk(2, -1)[0] if self.density else output
        if isinstance(self.model.likelihood, DecoderLikelihood):
            self.model.likelihood.outputs(code.unsqueeze(0))


def maximise(
    units: Units, unit: int, value_range: Sequence[float], steps: int = 400, starts: int = 8, seed: int = 0
) -> Maximum:
    """The observation in a box that activates a unit most: the best of several projected ascents by Adam.

    The activation is the logit of a binary unit with a threshold, and the ascent is on log q(unit is on | x). Far below
    the threshold that is the activation itself but for a constant; above, it would level off, and its gradient fade.

    Args:
        units: the layer.
        unit: from 0.
        value_range: the lowest and the highest value of an element.
        steps: of each ascent; the rate, at first a 20th of the range, falls to 0.
        starts: the first is the middle of the range, the others are uniform draws from the box.
        seed: of the draws.

    Raises:
        ValueError: for a unit that the layer has not.

    >>> from gae.systems import build
    >>> found = maximise(Units(build("ae", (3,), latent=2, hidden=())), 0, (0.0, 1.0), steps=50)
    >>> found.activation > found.start, found.image.shape
    (True, torch.Size([3]))
    """
    units.check(unit)
    low, high = value_range
    shape = units.model.likelihood.event_shape
    draws = torch.rand(starts, *shape, generator=torch.Generator().manual_seed(seed))
    draws[0] = 0.5
    begin = (low + (high - low) * draws).to(next(units.parameters()))
    likelihood = Activation(units, shape, kind="logit", threshold=THRESHOLD)
    with torch.no_grad():
        ascent = Ascent(Constant(begin), boxed_adam(low, high, steps), steps, adjoint=Detach())
        images = ascent(likelihood, begin.new_full((starts,), unit)).z[0]
        reached = units(images)[:, unit]
        best = int(reached.argmax())
        return Maximum(images[best], float(reached[best]), float(units(begin[:1])[0, unit]))


@torch.no_grad()
def most_active(units: Units, unit: int, x: Num[Tensor, "N *X"], batch_size: int = 1000) -> tuple[int, float]:
    """Which of x activates a unit most, and how much.

    Raises:
        ValueError: for x that the model does not take, or a unit that the layer has not.
    """
    units.check(unit)
    units.model.likelihood.check(x)
    activation = torch.cat([units(batch)[:, unit] for batch in x.split(batch_size)])
    best = int(activation.argmax())
    return best, float(activation[best])


def _encoder(engine: Inference, name: str = "inference") -> tuple[str, bool]:
    """The encoder network's name in the autoencoder, and whether it puts out a density's mean and log scale."""
    if isinstance(engine, Ascent):
        return _encoder(engine.init, f"{name}.init")
    if isinstance(engine, Amortized) and isinstance(engine.guide, NormalEncoder):
        return f"{name}.guide.network", True
    if isinstance(engine, Amortized) and isinstance(engine.guide, nn.Module):
        return f"{name}.guide", False
    encoded = [system for system, row in SYSTEMS.items() if "Amortized" in row.inference]
    raise TypeError(
        f"This model has no encoder network, and so no units that respond to an observation: its codes are found by "
        f"{type(engine).__name__}. Fit a system with an encoder: {', '.join(encoded)}."
    )
