"""Greedy layer-wise pre-training of deep autoencoders, and classifiers on their codes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro import distributions as dist
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.autoencoder import Autoencoder
from gae.data import Dataset, training_data
from gae.inference import Amortized, Inference, LearnsData
from gae.likelihood import Categorical, Flat, Gaussian, Head, Likelihood, LocationScaleHead, StandardUnits
from gae.nets import as_size, first_tensor
from gae.objective import joint
from gae.training import History, fit


def pretrain(
    autoencoder: Autoencoder,
    data: Any,
    *,
    epochs: int = 10,
    corruption: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> list[History]:
    """Greedy layer-wise pre-training of a deep autoencoder (Hinton & Salakhutdinov 2006; Bengio et al. 2007).

    Layer i of the encoder and its mirror layer in the decoder are fitted as an autoencoder of the codes of layer i - 1:
    the lowest with the autoencoder's head at its default scale, the others with squared error. The autoencoder is
    changed in place; fine-tune it by ``fit``.

    Args:
        autoencoder: a model whose deterministic encoder and decoder are ``nn.Sequential``s with the same number of
            layers, such as ``systems.build("stacked-ae", ...)``.
        data: a data set, whose training split at epoch 0 is used, or observations as for ``fit``.
        epochs: number of epochs per layer.
        corruption: corruption of each layer's input, as in a stacked denoising autoencoder (Vincent et al. 2010).
        seed: seed of each layer's ``fit``.
        options: further options of ``fit``, except ``out`` and ``resume``.

    Returns:
        The history of each layer, the lowest first.

    Raises:
        TypeError: for an autoencoder without such layers.
        ValueError: for ``out`` or ``resume``, which apply to a single run.

    >>> from gae import systems
    >>> model = systems.build("stacked-ae", (4,), hidden=(6, 5), latent=2)
    >>> [len(history.rows) for history in pretrain(model, torch.randn(20, 4), epochs=2, progress=False)]
    [2, 2, 2]
    """
    for name in {"out", "resume"} & options.keys():
        raise ValueError(f"{name} is for a single run, but each layer is one run. Give it when fine-tuning only.")
    data = training_data(data)
    codes = data.epoch(0, seed) if isinstance(data, Dataset) else data
    encoder, decoder, head = _layers(autoencoder.inference, autoencoder.likelihood.in_standard_units(codes)[0])
    autoencoder.likelihood.check(codes)
    _, codes = autoencoder.likelihood.in_standard_units(codes)
    device = first_tensor(autoencoder).device
    histories = []
    for i, (down, up) in enumerate(zip(encoder, reversed(decoder), strict=True)):
        width = _encoded(down, codes[:1].to(device)).shape[1:]
        layer_head = head if i == 0 else Gaussian
        layer = Autoencoder(layer_head(up, width, prior=Flat(*width)), Amortized(down), joint, corruption=corruption)
        histories.append(fit(layer, codes, epochs=epochs, seed=seed, **options))
        codes = torch.cat([_encoded(down, part.to(device)) for part in codes.split(1000)])
    return histories


class LabelHead(Categorical):
    """Categorical likelihood q(y|z) of a label y, the last of the D + 1 values of an observation (*pixels, y).

    A conditional model: ``log_joint`` is log q(y|z) in nats, with z a function of the pixels; only the label is decoded
    and scored. See ``classifier``.

    Args:
        decoder: maps codes (N, *Z) to logits (N, C).
        latent_shape: shape Z of a code, or an int for vectors.
        pixels: D, the number of values before the label.

    >>> model = LabelHead(nn.Linear(2, 10), 2, pixels=3)
    >>> model(torch.zeros(4, 2)).event_shape, model.event_shape
    (torch.Size([]), torch.Size([4]))
    """

    def __init__(self, decoder: nn.Module, latent_shape: int | tuple[int, ...] | Size, pixels: int):
        shape = as_size(latent_shape)
        super().__init__(decoder, shape, Flat(*shape))
        if self.event_shape:
            raise ValueError(f"The decoder must return logits (N, C), got outputs of shape {tuple(self.output_shape)}.")
        self.event_shape = Size((pixels + 1,))

    def log_likelihood(
        self, x: Num[Tensor, "B D"], output: Float[Tensor, "S B C"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.distribution(output).log_prob(x[:, -1])

    def check_support(self, x: Num[Tensor, "B D"]) -> None:
        """Raises ValueError if the last value of a row is not a class."""
        super().check_support(x[:, -1:])

    def _independent(self, output: Tensor) -> Distribution:
        return dist.Independent(self.distribution(output), 0, validate_args=False)


def classifier(autoencoder: Autoencoder, classes: int, corruption: nn.Module | None = None) -> Autoencoder:
    """Softmax classifier on the codes of an autoencoder, to be fitted to ``labelled`` rows.

    The encoder is shared: fitting the classifier also trains the autoencoder's encoder.

    Args:
        autoencoder: the model whose codes are classified.
        classes: the number C of classes.
        corruption: corruption of the pixels in training; labels are not corrupted.

    Raises:
        TypeError: for an engine other than ``Amortized``.

    >>> from gae import systems
    >>> model = classifier(systems.build("stacked-ae", (4,), hidden=(6,), latent=2), classes=3)
    >>> x, y = torch.randn(30, 4), torch.randint(3, (30,))
    >>> history = fit(model, labelled(x, y), epochs=2, progress=False)
    >>> predict(model, x).shape
    torch.Size([30])
    """
    if not isinstance(autoencoder.inference, Amortized) or not isinstance(autoencoder.inference.guide, nn.Module):
        raise TypeError(
            f"A classifier needs the codes of an encoder, got `{type(autoencoder.inference).__name__}`. "
            "Use a system with a deterministic encoder, such as ae, dae or stacked-ae."
        )
    likelihood = autoencoder.likelihood
    if isinstance(likelihood, StandardUnits):
        raise TypeError(
            "A classifier is given data as they are, but the encoder takes standard units. Standardise them."
        )
    like = first_tensor(autoencoder)
    top = nn.Sequential(nn.Flatten(), nn.Linear(likelihood.latent_shape.numel(), classes)).to(like)
    head = LabelHead(top, likelihood.latent_shape, likelihood.event_shape.numel())
    encoder = _PixelEncoder(_Pixels(likelihood.event_shape), autoencoder.inference.guide)
    return Autoencoder(head, Amortized(encoder), joint, corruption=corruption)


def labelled(x: Float[Tensor, "N *X"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """Training data of a ``classifier``: each observation as a row, with its label appended."""
    return torch.cat([x.flatten(1), labels.to(x).unsqueeze(1)], 1)


@torch.no_grad()
def predict(model: Autoencoder, x: Float[Tensor, "N *X"]) -> Int[Tensor, " N"]:
    """The most probable class of each observation according to a ``classifier``."""
    zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
    codes = model.encode(labelled(x, zeros)).point
    return model.likelihood.point(model.decode(codes)).long()


class _Pixels(nn.Module):
    """Maps rows (N, D + 1) to observations (N, *X), without the labels."""

    def __init__(self, event_shape: Size):
        super().__init__()
        self.event_shape = event_shape

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N *X"]:
        return x[:, :-1].unflatten(1, self.event_shape)


class _PixelEncoder(nn.Sequential):
    """An encoder of observations (N, *X), applied to rows of pixels and label; it ignores the label."""

    def initialize(self, likelihood: Likelihood, x: Float[Tensor, "N D"], seed: int) -> None:
        """Initialises the parts of the encoder that depend on the training data."""
        pixels, encoder = self
        for part in encoder.modules():
            if isinstance(part, LearnsData):
                part.initialize(likelihood, pixels(x), seed)


def _layers(
    engine: Inference, likelihood: Likelihood
) -> tuple[nn.Sequential, nn.Sequential, Callable[..., Likelihood]]:
    """Encoder and decoder as layers, and the constructor of the head."""
    encoder = engine.guide if isinstance(engine, Amortized) else None
    decoder = likelihood.decoder if isinstance(likelihood, Head) else None
    if isinstance(encoder, nn.Sequential) and isinstance(decoder, nn.Sequential) and len(encoder) == len(decoder):
        head: Callable[..., Likelihood] = type(likelihood)
        relative = isinstance(likelihood, LocationScaleHead) and likelihood.relative
        return encoder, decoder, partial(head, relative=True) if relative else head
    raise TypeError(
        "Pre-training needs an encoder and a decoder that are `nn.Sequential`s with the same number of layers, each "
        'mirroring one of the other. Use `systems.build("stacked-ae", ...)`.'
    )


@torch.no_grad()
def _encoded(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)
