"""Derivatives of the joint density by way of the decoder's output, against torch's own Hessian of the joint density."""

from itertools import product

import pytest
import torch
from cases import LIKELIHOODS, LikelihoodCase, vector
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.func import hessian, jacrev

from gae import nets
from gae.inference import curvature
from gae.inference.curvature import curvature_matrix, derivatives, expansion
from gae.likelihood import Bernoulli, DecoderLikelihood, DecoderStandardUnits, Gaussian, Likelihood, PartiallyObserved
from gae.likelihood.base import DecoderWrapper

ROWS = 4


def drawn(case: LikelihoodCase) -> tuple[Likelihood, Tensor, Tensor]:
    likelihood = case.build().double()
    z = torch.rand(2, ROWS, *likelihood.latent_shape, dtype=torch.float64)  # not negative, for parts that must not be
    return likelihood, case.data((ROWS, *likelihood.event_shape)).double(), z


def separable(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, DecoderLikelihood) and likelihood.separable


SEPARABLE = [case for case in LIKELIHOODS if separable(case.build())]
each_separable = pytest.mark.parametrize("case", SEPARABLE, ids=[case.name for case in SEPARABLE])
VECTOR = [case for case in SEPARABLE if vector(case.build())]
each_vector = pytest.mark.parametrize("case", VECTOR, ids=[case.name for case in VECTOR])


class Coupling:
    """Neighbouring pixels attract each other, in a density that does not sum to 1."""

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        density: Tensor = super().log_likelihood(x, output, k)  # type: ignore[misc]
        return density + (output[..., 1:] * output[..., :-1]).tanh().sum(-1)


class Coupled(Bernoulli):
    """The same, by a method of the class itself."""

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        return super().log_likelihood(x, output, k) + (output[..., 1:] * output[..., :-1]).tanh().sum(-1)


class Mixed(Coupling, Bernoulli):
    """The same, by a mix-in that is no likelihood."""


def test_heads_whose_elements_add_up_say_so() -> None:
    names = {case.name for case in SEPARABLE}
    assert {"gaussian", "laplace", "bernoulli", "continuous-bernoulli", "poisson"} <= names
    assert names.isdisjoint(("categorical", "multinomial", "von-mises-fisher"))


@each_separable
def test_a_separable_density_is_a_sum_over_the_output(case: LikelihoodCase) -> None:
    likelihood, x, z = drawn(case)
    assert isinstance(likelihood, DecoderLikelihood)
    output = likelihood.outputs(z[:1, :1]).detach()
    full = hessian(lambda o: likelihood.log_likelihood(x[:1], o)[0, 0])(output).reshape(2 * [output.numel()])
    assert torch.equal(full, full.diagonal().diag())


@each_vector
def test_derivatives_are_those_of_the_joint(case: LikelihoodCase) -> None:
    likelihood, x, z = drawn(case)

    def joint(row: Tensor, code: Tensor) -> Tensor:
        return likelihood.log_joint(row[None], code[None, None])[0, 0]

    value, grad, second = derivatives(likelihood, x, z)
    for s, b in product(range(2), range(ROWS)):
        torch.testing.assert_close(value[s, b], joint(x[b], z[s, b]))
        torch.testing.assert_close(grad[s, b], jacrev(joint, 1)(x[b], z[s, b]))
        torch.testing.assert_close(second[s, b], hessian(joint, 1)(x[b], z[s, b]), rtol=1e-9, atol=1e-9)
    parameters = [each for each in likelihood.parameters() if each.requires_grad]
    weight = torch.randn(second.shape[-2:], dtype=torch.float64)
    ours = torch.autograd.grad((second * weight).sum(), parameters, allow_unused=True)
    seconds = [hessian(joint, 1)(x[b], z[s, b]) for s in range(2) for b in range(ROWS)]
    total = (torch.stack(seconds) * weight).sum()
    if not total.requires_grad:
        assert not parameters
        return
    theirs = torch.autograd.grad(total, parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(*(zero if each is None else each for each in (mine, other)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("head", [Coupled, Mixed])
def test_a_subclass_that_couples_elements_is_not_separable(head: type[Bernoulli]) -> None:
    model = head(nets.mlp(2, (5,), 3), 2).double()
    x, z = torch.ones(ROWS, 3).double(), torch.randn(1, ROWS, 2).double()
    assert Bernoulli.separable and not head.separable
    wanted = hessian(lambda code: model.log_joint(x[:1], code[None, None])[0, 0])(z[0, 0])
    torch.testing.assert_close(derivatives(model, x, z)[2][0, 0], wanted)


@pytest.mark.parametrize("wrapper", [PartiallyObserved, DecoderStandardUnits])
def test_a_wrapper_that_couples_elements_is_not_separable(wrapper: type[DecoderWrapper]) -> None:
    coupled = type("CoupledWrapper", (Coupling, wrapper), {})
    head = Gaussian(nn.Linear(2, 3), 2)
    assert wrapper(head).separable and not coupled(head).separable  # type: ignore[call-arg]


@pytest.mark.parametrize("head", [Bernoulli, Mixed])
def test_gauss_newton_of_a_linear_decoder_is_its_hessian(head: type[Bernoulli]) -> None:
    """Also where the elements of the output do not add up."""
    x, z = torch.ones(ROWS, 3).double(), torch.randn(1, ROWS, 2).double()
    model = head(nn.Linear(2, 3), 2).double()
    wanted = hessian(lambda code: -model.log_joint(x[:1], code[None, None])[0, 0])(z[0, 0])
    torch.testing.assert_close(curvature_matrix(model, x, z)[0, 0], wanted)


def test_an_expansion_in_blocks_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Gaussian(nets.mlp(2, (5,), 3), 2).double()
    x, z = torch.randn(ROWS, 3).double(), torch.randn(ROWS, 2).double()
    whole = expansion(model, x, z)
    monkeypatch.setattr(curvature, "JACOBIANS", 3 * 2 * 3)
    for a, b in zip(whole, expansion(model, x, z), strict=True):
        torch.testing.assert_close(a, b)
