"""Activation maximisation: observations that maximise the activation of a unit (ledger D20)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Ascent, Constant, Detach, Inference
from gae.likelihood import Activation, CategoricalSequence, DecoderLikelihood
from gae.likelihood.weights import channel_mean
from gae.nets import first_tensor
from gae.systems import SYSTEMS, NormalEncoder
from gae.systems.latents import THRESHOLD, boxed_adam


@dataclass(frozen=True)
class Maximum:
    """Result of activation maximisation for one unit."""

    image: Float[Tensor, "*X"]
    activation: float
    start: float  # activation at the middle of the value range, where the first ascent starts


class Units(nn.Module):
    """Activations of one layer of an autoencoder with an encoder network, as a module (N, *X) -> (N, U).

    The activation of a channel is its mean over positions. For a layer of the decoder, the observation is encoded
    first: by the mean of q(z|x), or by a deterministic encoder. The autoencoder is copied, not changed.

    Args:
        model: an autoencoder whose engine is ``Amortized``, or an ``Ascent`` initialised by it, with a
            ``NormalEncoder`` or a module that returns codes.
        layer: a name in ``model.named_modules()``; by default the output of the encoder network.

    Raises:
        TypeError: for a model without an encoder network, or of sequences of classes, which have no gradient.
        ValueError: for an unknown layer; the message lists the valid ones.

    >>> from gae.systems import build
    >>> units = Units(build("vae", (1, 8, 8), latent=2, hidden=(16,)))
    >>> units.layer, units(torch.zeros(5, 1, 8, 8)).shape, units.meaning(2)
    ('inference.guide.network', torch.Size([5, 4]), 'log scale of z[0]')
    """

    def __init__(self, model: Autoencoder, layer: str | None = None):
        super().__init__()
        if isinstance(model.likelihood, CategoricalSequence):
            raise TypeError(
                "The model's observations are classes (such as text), so a unit's activation has no gradient with "
                "respect to them. Use a model of images or other real numbers."
            )
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.encoder, self.density = _encoder(self.model.inference)
        self.layer = self.encoder if layer is None else layer
        sizes = self._layers()
        if self.layer not in sizes:
            listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            raise ValueError(f"No layer {self.layer!r}. Valid layers (number of units): {listed}.")
        self.size = sizes[self.layer]

    def forward(self, x: Num[Tensor, "N *X"]) -> Float[Tensor, "N U"]:
        output = self._outputs(x, [self.layer])[self.layer]
        return channel_mean(output)

    def check(self, unit: int) -> None:
        """Raises ValueError if the layer has no such unit."""
        if not 0 <= unit < self.size:
            raise ValueError(f"{self.layer} has {self.size} units, 0 ... {self.size - 1}; got unit {unit}.")

    def meaning(self, unit: int) -> str | None:
        """Meaning of a unit of the encoder's output for the flattened code z; None for other layers."""
        if self.layer != self.encoder:
            return None
        if not self.density:
            return f"z[{unit}]"
        half = self.size // 2
        return f"mean of z[{unit}]" if unit < half else f"log scale of z[{unit - half}]"

    def _layers(self) -> dict[str, int]:
        """The layers applied to an observation, in order, and their numbers of units."""
        likelihood = self.model.likelihood
        like = first_tensor(likelihood)
        with torch.no_grad():
            outputs = self._outputs(
                like.new_zeros(1, *likelihood.event_shape), [name for name, _ in self.model.named_modules()]
            )
        return {name: output.shape[1] for name, output in outputs.items() if output.dim() > 1}

    def _outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the named modules in the computation from x to the decoder's output."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output

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
        return outputs

    def _run(self, x: Tensor) -> None:
        output = self.model.get_submodule(self.encoder)(self.model.likelihood.in_standard_units(x)[1])
        if not isinstance(output, Tensor):
            raise TypeError(f"{self.encoder} returns {type(output).__name__}, but it must return a tensor of codes.")
        code = output.chunk(2, -1)[0] if self.density else output
        if isinstance(self.model.likelihood, DecoderLikelihood):
            self.model.likelihood.outputs(code.unsqueeze(0))


def maximise(
    units: Units, unit: int, value_range: Sequence[float], steps: int = 400, starts: int = 8, seed: int = 0
) -> Maximum:
    """Activation maximisation in a box of values: the best of several projected ascents by Adam.

    The activation is the logit of a binary unit with a threshold, and the objective is log q(unit is on | x). Far below
    the threshold this equals the activation up to a constant; above, it would saturate and its gradient vanish.

    Args:
        units: the layer.
        unit: index of the unit, from 0.
        value_range: lowest and highest value of an element.
        steps: number of steps of each ascent; the rate decreases from a 20th of the range to 0.
        starts: number of ascents; the first starts at the middle of the range, the others at uniform random points.
        seed: seed of the random starts.

    Raises:
        ValueError: if the layer has no such unit.

    >>> from gae.systems import build
    >>> best = maximise(Units(build("ae", (3,), latent=2, hidden=())), 0, (0.0, 1.0), steps=50)
    >>> best.activation > best.start, best.image.shape
    (True, torch.Size([3]))
    """
    units.check(unit)
    low, high = value_range
    shape = units.model.likelihood.event_shape
    draws = torch.rand(starts, *shape, generator=torch.Generator().manual_seed(seed))
    draws[0] = 0.5
    begin = (low + (high - low) * draws).to(first_tensor(units))
    likelihood = Activation(units, shape, kind="logit", threshold=THRESHOLD)
    with torch.no_grad():
        ascent = Ascent(Constant(begin), boxed_adam(low, high, steps), steps, adjoint=Detach())
        images = ascent(likelihood, begin.new_full((starts,), unit)).z[0]
        activation = units(images)[:, unit]
        best = int(activation.argmax())
        return Maximum(images[best], float(activation[best]), float(units(begin[:1])[0, unit]))


@torch.no_grad()
def most_active(units: Units, unit: int, x: Num[Tensor, "N *X"], batch_size: int = 1000) -> tuple[int, float]:
    """The index of the observation that activates a unit most, and its activation.

    Raises:
        ValueError: for x that the model does not accept, or a unit that the layer does not have.
    """
    units.check(unit)
    units.model.likelihood.check(x)
    activation = torch.cat([units(batch)[:, unit] for batch in x.split(batch_size)])
    best = int(activation.argmax())
    return best, float(activation[best])


def _encoder(engine: Inference, name: str = "inference") -> tuple[str, bool]:
    """The encoder network's name in the autoencoder, and whether its output is the mean and log scale of a density."""
    if isinstance(engine, Ascent):
        return _encoder(engine.init, f"{name}.init")
    if isinstance(engine, Amortized) and isinstance(engine.guide, NormalEncoder):
        return f"{name}.guide.network", True
    if isinstance(engine, Amortized) and isinstance(engine.guide, nn.Module):
        return f"{name}.guide", False
    amortized = [system for system, row in SYSTEMS.items() if "Amortized" in row.inference]
    raise TypeError(
        f"This model has no encoder network, so no units respond to an observation: its codes are inferred by "
        f"{type(engine).__name__}. Fit a system with an encoder: {', '.join(amortized)}."
    )
