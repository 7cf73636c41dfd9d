"""Transforms of ``torch.func`` through an ascent: equal to autograd and to finite differences, or a TypeError."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from gae import Autoencoder
from gae.inference import (
    ESWMV,
    LBFGS,
    Adam,
    Amortized,
    Ascent,
    CheckpointedUnroll,
    Detach,
    GaussNewton,
    Implicit,
    Inference,
    MeanField,
    OneStep,
    Truncate,
)
from gae.likelihood import Gaussian

ENGINES: dict[str, Callable[[], Inference]] = {
    "unroll": lambda: Ascent(max_steps=3),
    "adam": lambda: Ascent(step=Adam(0.1), max_steps=3),
    "lbfgs": lambda: Ascent(step=LBFGS(), max_steps=4),
    "gauss-newton": lambda: Ascent(step=GaussNewton(), max_steps=3),
    "truncate": lambda: Ascent(max_steps=3, adjoint=Truncate(2)),
    "one-step": lambda: Ascent(step=LBFGS(), max_steps=9, adjoint=OneStep()),
    "mean-field": lambda: Ascent(step=Adam(0.1), max_steps=3, family=MeanField(2)),
    "warm": lambda: Ascent(Amortized(nn.Linear(4, 2).double()), max_steps=2),
}


def built(engine: Inference) -> tuple[Autoencoder, Tensor]:
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))
    return Autoencoder(Gaussian(decoder, 2).double(), engine), torch.randn(3, 4).double()


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_by_transforms_are_those_of_autograd(engine: str) -> None:
    model, x = built(ENGINES[engine]())

    def codes(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return model.encode(x).point

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(1)
        return functional_call(model, parameters, (x,))

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(codes(leaf).square().sum(), leaf)
    assert torch.allclose(grad(lambda x: codes(x).square().sum())(x), wanted, rtol=1e-12, atol=1e-14)
    rows = torch.stack([torch.autograd.grad(codes(leaf)[0, i], leaf)[0] for i in range(2)])
    assert torch.allclose(jacrev(codes)(x)[0], rows, rtol=1e-12, atol=1e-14)
    move, step = torch.randn_like(x), 1e-6
    _, slope = jvp(codes, (x,), (move,))
    if engine not in ("truncate", "one-step"):  # which leave terms out
        difference = (codes(x + step * move) - codes(x - step * move)) / (2 * step)
        assert torch.allclose(slope, difference.detach(), rtol=1e-5, atol=1e-8)
    parameters = dict(model.named_parameters())
    found = grad(loss)({name: p.detach() for name, p in parameters.items()})
    for value, other in zip(
        found.values(), torch.autograd.grad(loss(parameters), list(parameters.values())), strict=True
    ):
        assert torch.allclose(value, other, rtol=1e-12, atol=1e-14)


def test_a_detached_code_is_a_constant() -> None:
    model, x = built(Ascent(max_steps=3, adjoint=Detach()))
    assert bool((grad(lambda x: model.encode(x).point.sum())(x) == 0).all())


@pytest.mark.parametrize("adjoint", [CheckpointedUnroll(), Implicit()])
def test_gradient_modes_that_transforms_cannot_pass_are_refused(adjoint: nn.Module) -> None:
    model, x = built(Ascent(max_steps=2, adjoint=adjoint))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=rf"Cannot use `{type(adjoint).__name__}` inside a transform.*`Unroll\(\)`"):
        grad(lambda x: model.encode(x).point.sum())(x)
    stopped, x = built(Ascent(step=Adam(0.1), max_steps=2, adjoint=Detach(), stop=ESWMV()))
    with pytest.raises(TypeError, match=r"Cannot use `ESWMV` inside a transform"):
        grad(lambda x: stopped.encode(x).point.sum())(x)


def test_vmap_is_refused_where_rows_decide() -> None:
    model, x = built(Ascent(max_steps=2))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(TypeError, match=r"cannot be mapped by `torch.vmap`.*whole batch.*jacrev"):
        vmap(lambda row: model.encode(row.unsqueeze(0)).point)(x)
    several = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    with pytest.raises(TypeError, match=r"cannot be mapped by `torch.vmap`.*loop over models"):
        vmap(lambda one: functional_call(model, one, (x,)))(several)


def test_per_sample_gradients() -> None:
    """Of an encoder by ``vmap`` and of an ascent by ``jacrev``, against single samples."""
    for engine in (Amortized(nn.Linear(4, 2).double()), Ascent(max_steps=3)):
        model, x = built(engine)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        if isinstance(engine, Ascent):
            sums = jacrev(
                lambda p, model=model, x=x: functional_call(_Each(model), {f"model.{k}": v for k, v in p.items()}, x)
            )
            found = sums(parameters)
        else:
            one = grad(lambda p, row, model=model: functional_call(model, p, (row.unsqueeze(0),)))
            found = vmap(one, (None, 0))(parameters, x)
        for i, row in enumerate(x.split(1)):
            wanted = torch.autograd.grad(model(row), list(model.parameters()))
            for value, other in zip(found.values(), wanted, strict=True):
                assert torch.allclose(value[i], other, rtol=1e-10, atol=1e-13)


class _Each(nn.Module):
    """The loss of each sample."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return -self.model.objective(self.model.encode(x))
