"""Gradients through a solve, against finite differences and closed forms."""

import gc
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import FULL
from problems import Landscape, difference, neural, posterior, ppca
from torch import Tensor, nn

from gae import nets
from gae.inference import (
    LBFGS,
    Adam,
    Adjoint,
    Amortized,
    Argmax,
    Ascent,
    CheckpointedUnroll,
    ClosedForm,
    Constant,
    Detach,
    Encoding,
    GaussNewton,
    GradientAscent,
    Implicit,
    Inference,
    Langevin,
    MeanField,
    Momentum,
    OneStep,
    Prior,
    Status,
    Step,
    Truncate,
    Unroll,
    Zeros,
)
from gae.inference.ascent.steps.conjugate import conjugate_gradients
from gae.likelihood import Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import elbo, joint
from gae.systems import NormalEncoder

Loss = Callable[[Encoding], Tensor]

MODES: dict[str, Callable[[], Adjoint]] = {
    "unroll": Unroll,
    "checkpoint": CheckpointedUnroll,
    "truncate": lambda: Truncate(2),
    "implicit": lambda: Implicit(stationary=1e9),
    "one step": OneStep,
    "detach": Detach,
}
RULES: dict[str, Callable[[tuple[int, ...]], Step]] = {
    "fixed rate": lambda shape: GradientAscent(0.03),
    "learned rate": lambda shape: GradientAscent(0.03, learn=True),
    "rate per step": lambda shape: GradientAscent(0.03, learn=True, steps=3),
    "rate per dimension": lambda shape: GradientAscent(0.03, learn=True, steps=2, shape=shape),
    "momentum": lambda shape: Momentum(0.01, 0.8),
    "adam": lambda shape: Adam(0.05),
    "lbfgs": lambda shape: LBFGS(history=3),
    "preconditioned": lambda shape: LBFGS(curvature=3.0 * torch.eye(math.prod(shape)) + 0.5),
    "gauss-newton": lambda shape: GaussNewton(),
    "matrix-free": lambda shape: GaussNewton(dense=False),
    "langevin": lambda shape: Langevin(0.01),
    "adjusted langevin": lambda shape: Langevin(0.05, adjusted=True),
}
DECODERS: dict[str, Callable[[], Likelihood]] = {"ppca": ppca, "neural": neural}


def readout(z: Tensor) -> Tensor:
    """A loss of the codes (S, B, Z) only."""
    z = z.flatten(2)
    weight = torch.arange(1.0, 1 + z.shape[2], dtype=z.dtype)
    return (z * weight).sin().sum((0, 2)) + z.square().sum((0, 2))


def downstream(encoding: Encoding) -> Tensor:
    return readout(encoding.z)


LOSSES: dict[str, Loss] = {"joint": joint, "elbo": elbo, "downstream": downstream}


class Problem:
    """One decoder, data and engine: the loss, and its gradient by groups of parameters."""

    def __init__(self, likelihood: Likelihood, engine: Inference, loss: Loss, batch: int = 4):
        self.likelihood, self.engine, self.loss_of = likelihood, engine.double(), loss
        generator = torch.Generator().manual_seed(1)
        shape = (batch, *likelihood.event_shape)
        self.x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def loss(self) -> Tensor:
        torch.manual_seed(7)
        return self.loss_of(self.engine(self.likelihood, self.x)).sum()

    @property
    def groups(self) -> dict[str, list[Tensor]]:
        parts: dict[str, Any] = {"decoder": self.likelihood.parameters(), "x": [self.x]}
        if isinstance(self.engine, Ascent):
            parts |= {"start": self.engine.init.parameters(), "rate": self.engine.step.parameters()}
        found = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
        return {name: part for name, part in found.items() if part}

    def gradient(self) -> dict[str, list[Tensor]]:
        tensors = [t for part in self.groups.values() for t in part]
        loss = self.loss()
        grads = torch.autograd.grad(loss, tensors, allow_unused=True) if loss.requires_grad else [None] * len(tensors)
        found = iter(grads)
        return {
            name: [torch.zeros_like(t) if g is None else g for t, g in zip(part, found, strict=False)]
            for name, part in self.groups.items()
        }


def flat(gradient: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def apart(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]], names: Sequence[str] = ()) -> float:
    """The largest distance between two gradients relative to the second, over the groups."""
    return max(float((flat(a[n]) - flat(b[n])).norm() / flat(b[n]).norm().clamp_min(1e-9)) for n in names or b)


def exact(
    problem: Problem, gradient: dict[str, list[Tensor]], step: float = 1e-5, tol: float = 1e-6, floor: float = 0.1
) -> bool:
    """Whether each group's gradient is the central difference along a random direction; "decoder" must matter."""
    assert abs(problem.loss().item()) < 1e4, "the solve explodes: a difference would be rounding"
    found = []
    for name, tensors in problem.groups.items():
        generator = torch.Generator().manual_seed(3)
        moves = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
        claimed = float(sum((g * m).sum() for g, m in zip(gradient[name], moves, strict=True)))
        true = difference(problem.loss, tensors, moves, step)
        assert name != "decoder" or abs(true) > 1e-3
        close = abs(claimed - true) <= tol * max(abs(true), floor)
        if not close:  # a large third derivative, whose part of the error is known from half the step
            true = (4 * difference(problem.loss, tensors, moves, step / 2) - true) / 3
            close = abs(claimed - true) <= tol * max(abs(true), floor)
        if not close:  # Adam near a gradient of zero is smooth only on the scale of its eps
            true = difference(problem.loss, tensors, moves, step / 10)
            close = abs(claimed - true) <= tol * max(abs(true), floor)
        found.append(close)
    return all(found)


def ascent(likelihood: Likelihood, rule: str, loss: str, **options: Any) -> Ascent:
    """From an encoder: of codes, or for the ELBO of densities."""
    latent, dim = likelihood.latent_shape[0], likelihood.event_shape[0]
    if loss == "elbo":
        options = {"family": MeanField(samples=2), **options}
        network = nn.Linear(dim, 2 * latent)
        nn.init.constant_(network.bias[latent:], -2.0)  # narrow densities, which fixed rates can widen
        start = Amortized(NormalEncoder(network))
        return Ascent(start, RULES[rule]((2, latent)), **options)
    return Ascent(Amortized(nn.Linear(dim, latent)), RULES[rule]((latent,)), **options)


CASES = [
    (decoder, rule, loss, steps)
    for decoder in DECODERS
    for rule in RULES
    for loss, steps in (("joint", 1), ("joint", 4), ("downstream", 3), ("elbo", 3))
    if FULL or decoder == "neural" or (loss, steps) == ("joint", 4)  # a linear decoder's derivatives are less
    if not (loss == "elbo" and rule in ("gauss-newton", "matrix-free"))  # these move points only
    if not (
        steps == 1 and rule in ("gauss-newton", "matrix-free", "lbfgs", "preconditioned")
    )  # their first trial is not yet tested
]


@pytest.mark.parametrize("decoder, rule, loss, steps", CASES)
def test_unroll_and_checkpoint_are_exact(decoder: str, rule: str, loss: str, steps: int) -> None:
    likelihood = DECODERS[decoder]()
    engine = ascent(likelihood, rule, loss, max_steps=steps)
    problem = Problem(likelihood, engine, LOSSES[loss])
    unrolled = problem.gradient()
    assert exact(problem, unrolled)
    engine.adjoint = CheckpointedUnroll()
    assert apart(problem.gradient(), unrolled) < 1e-10


@pytest.mark.parametrize("rule, options", [("lbfgs", {}), ("gauss-newton", {}), ("learned rate", {"tol": 0.05})])
def test_rows_that_stop_keep_their_gradient(rule: str, options: dict[str, Any]) -> None:
    likelihood = neural()
    engine = ascent(likelihood, rule, "downstream", **{"max_steps": 30, "tol": 1e-3, **options})
    problem = Problem(likelihood, engine, downstream, batch=6)
    with torch.no_grad():
        problem.x *= torch.logspace(-2, 0, 6, dtype=torch.float64).unsqueeze(1)  # near to the start, and far
    solve = engine(likelihood, problem.x).solve
    assert solve is not None and len(solve.steps.unique()) > 1, "all rows stop together: nothing is tested"
    unrolled = problem.gradient()
    assert exact(problem, unrolled)
    engine.adjoint = CheckpointedUnroll()
    assert apart(problem.gradient(), unrolled) < 1e-10


def test_a_learned_rate_has_a_gradient_by_step_and_element() -> None:
    likelihood = ppca()
    engine = Ascent(step=GradientAscent(0.05, learn=True, steps=3, shape=(3,)), max_steps=2)
    problem = Problem(likelihood, engine, downstream)
    (rate,) = problem.gradient()["rate"]
    assert rate.shape == (3, 3)
    assert bool((rate[:2] != 0).all()) and bool((rate[2] == 0).all())  # no third step was taken


class Rates(Step):
    """A rate of its own, a parameter, for each step."""

    def __init__(self, rates: list[float]):
        super().__init__()
        self.rates = nn.ParameterList(torch.tensor(rate) for rate in rates)

    def forward(
        self, problem: Any, u: Tensor, value: Tensor, grad: Tensor, state: dict[str, Tensor], t: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return u + self.rates[t] * grad, state


@pytest.mark.parametrize("mode", [Unroll, CheckpointedUnroll])
def test_parameters_of_single_steps_and_of_all_by_their_formula(mode: Callable[[], Adjoint]) -> None:
    """On -½ (z - x)² from 0, z_T = x (1 - Π (1 - r_t)): dz/dx = 1 - Π (1 - r_t), dz/dr_t = x Π over the other steps."""
    rates, x = [0.5, 0.2, 0.9], torch.tensor([[3.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    engine = Ascent(Zeros(), Rates(rates), 3, adjoint=mode()).double()
    code = engine(Landscape(lambda x, z: -0.5 * (z - x).square().sum(2)), x).z
    found = torch.autograd.grad(code.sum(), [x, *engine.parameters()])
    left = math.prod(1 - r for r in rates)
    assert torch.allclose(found[0], torch.full_like(x, 1 - left))
    for gradient, rate in zip(found[1:], rates, strict=True):
        assert gradient.item() == pytest.approx(2.0 * left / (1 - rate))


def test_restarts_and_mixtures_pass_the_gradient_of_their_winner() -> None:
    """Against the closed-form posterior mean of the winning component."""
    mixture = LinearMixture(3, 2, (5,), scale=0.5, learn_scale=True, learn_weights=True).double()
    with torch.no_grad():
        mixture.means.normal_()
    engine = Argmax(Ascent(Prior(), GaussNewton(), max_steps=4, restarts=3))
    found = Problem(mixture, engine, downstream, batch=8)
    true = Problem(mixture, Argmax(ClosedForm()), downstream, batch=8)
    reference = true.gradient()
    for mode in (Unroll(), CheckpointedUnroll(), Implicit(tol=1e-10), OneStep()):
        engine.inner.adjoint = mode  # type: ignore[union-attr]
        assert apart(found.gradient(), reference) < 1e-8


class Solved:
    """PPCA with the results of its exact codes, the posterior means."""

    def __init__(self) -> None:
        self.likelihood = ppca()
        self.x = Problem(self.likelihood, Zeros(), downstream).x

    def problem(self, engine: Inference, loss: Loss) -> Problem:
        return Problem(self.likelihood, engine, loss)

    def reference(self, loss: str) -> dict[str, list[Tensor]]:
        """The total derivative through the closed form."""
        mean = posterior(self.likelihood, self.x)[0].unsqueeze(0)
        value = readout(mean) if loss == "downstream" else self.likelihood.log_joint(self.x, mean)
        parameters = [p for p in self.likelihood.parameters() if p.requires_grad]
        found = torch.autograd.grad(value.sum(), [*parameters, self.x])
        return {"decoder": list(found[:-1]), "x": [found[-1]]}


@pytest.mark.parametrize("loss", ["joint", "downstream"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_at_the_optimum_of_ppca(mode: str, loss: str) -> None:
    """Newton's step makes all of them exact; for the envelope ``joint`` even ``Detach`` is, for a readout never."""
    solved = Solved()
    engine = Ascent(step=GaussNewton(), max_steps=4, adjoint=MODES[mode]())
    error = apart(solved.problem(engine, LOSSES[loss]).gradient(), solved.reference(loss))
    if mode == "detach" and loss == "downstream":
        assert error > 0.99
    else:
        assert error < 1e-8


def test_detach_equals_unroll_for_joint_at_the_optimum_only() -> None:
    solved = Solved()
    for steps, close in ((200, True), (2, False)):
        gradients = []
        for mode in (Detach(), Unroll()):
            engine = Ascent(step=GradientAscent(0.1), max_steps=steps, adjoint=mode)
            gradients.append(solved.problem(engine, joint).gradient())
        assert (apart(*gradients) < 1e-8) == close


@pytest.mark.parametrize("rule", ["fixed rate", "lbfgs", "matrix-free"])
def test_implicit_is_exact_on_ppca(rule: str) -> None:
    solved = Solved()
    engine = Ascent(step=RULES[rule](()), max_steps=800, grad_tol=1e-8, adjoint=Implicit())
    problem = solved.problem(engine, downstream)
    assert apart(problem.gradient(), solved.reference("downstream")) < 1e-6
    residual = engine.adjoint.residual
    assert isinstance(residual, Tensor) and residual.shape == (1, 4) and bool((residual <= 1e-6).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_implicit_is_exact_on_a_network(loss: str) -> None:
    likelihood = neural()
    options = {"family": MeanField(samples=8)} if loss == "elbo" else {}  # fewer draws leave wide densities
    engine = ascent(likelihood, "lbfgs", loss, max_steps=300, grad_tol=1e-11, adjoint=Implicit(tol=1e-10), **options)
    problem = Problem(likelihood, engine, LOSSES[loss])
    solve = engine(likelihood, problem.x).solve
    assert solve is not None and solve.summary() == "converged: 4"
    assert exact(problem, problem.gradient(), step=1e-3, floor=1.0)  # each solve leaves about 1e-10 in the loss


def test_implicit_warns_with_the_gradient_norm_it_saw() -> None:
    solved = Solved()
    engine = Ascent(Constant(torch.ones(3)), max_steps=0, adjoint=Implicit()).double()
    mean, covariance = posterior(solved.likelihood, solved.x)
    norm = torch.linalg.vector_norm((mean - 1) @ torch.linalg.inv(covariance), dim=1)
    with pytest.warns(UserWarning, match=f"gradient norm is {norm.max().item():.3g} at the worst sample"):
        found = engine(solved.likelihood, solved.x)
    assert found.solve is not None
    assert torch.allclose(found.solve.grad_norm[0], norm)
    with torch.no_grad():
        engine(solved.likelihood, solved.x)  # no gradient, no warning


def test_implicit_damping_and_residual_are_those_of_the_linear_system() -> None:
    """dz/dx = (A + damping)⁻¹ W/σ², and one conjugate-gradient iteration is one steepest-descent step."""
    solved = Solved()
    mean, covariance = posterior(solved.likelihood, solved.x.detach())
    precision = torch.linalg.inv(covariance)
    pull = solved.likelihood.loadings[0] * (-2 * solved.likelihood.log_scale[0]).exp()
    leaf = mean.clone().requires_grad_()
    (cotangent,) = torch.autograd.grad(readout(leaf.unsqueeze(0)).sum(), leaf)
    damped = precision + 0.7 * torch.eye(3, dtype=torch.float64)

    mode = Implicit(damping=0.7, tol=1e-12)
    problem = solved.problem(Ascent(step=GaussNewton(), max_steps=4, adjoint=mode), downstream)
    assert torch.allclose(problem.gradient()["x"][0], torch.linalg.solve(damped, cotangent.mT).mT @ pull)

    mode.iterations = 1
    found = problem.gradient()["x"][0]
    image = cotangent @ damped
    length = (cotangent.square().sum(1) / (cotangent * image).sum(1)).unsqueeze(1)
    assert torch.allclose(found, length * cotangent @ pull)
    relative = (cotangent - length * image).norm(dim=1) / cotangent.norm(dim=1)
    assert mode.residual is not None and torch.allclose(mode.residual[0], relative)


def test_implicit_stops_at_negative_curvature() -> None:
    """z² has no maximum: no solution, a residual of 1, and nothing that is not finite."""
    flat_at = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    saddle = Landscape(lambda x, z: (z * z).sum(2) + (x * z).sum(2) - x.sum(1)).double()
    mode = Implicit(stationary=1e9)
    code = Ascent(Constant(torch.zeros(1)), max_steps=0, adjoint=mode).double()(saddle, flat_at).z
    (gradient,) = torch.autograd.grad(code.sum(), flat_at)
    assert mode.residual is not None
    assert torch.equal(gradient, torch.zeros_like(gradient)) and torch.equal(mode.residual, torch.ones(1, 2).double())


def test_one_step_and_truncate_are_partial_sums_of_the_neumann_series() -> None:
    """At the solution, n gradient steps of rate r leave (I - (I - r A)ⁿ) A⁻¹ W/σ² of dz/dx = A⁻¹ W/σ²."""
    solved, step, rate = Solved(), GradientAscent(0.1), 0.1
    mean, covariance = posterior(solved.likelihood, solved.x.detach())
    pull = solved.likelihood.loadings[0] * (-2 * solved.likelihood.log_scale[0]).exp()
    leaf = mean.clone().requires_grad_()
    (cotangent,) = torch.autograd.grad(readout(leaf.unsqueeze(0)).sum(), leaf)
    contraction = torch.eye(3, dtype=torch.float64) - rate * torch.linalg.inv(covariance)

    def gradient(mode: Adjoint, **options: Any) -> Tensor:
        engine = Ascent(Constant(mean), step, max_steps=100, adjoint=mode, **options)
        return solved.problem(engine, downstream).gradient()["x"][0]

    errors = []
    implicit = gradient(Implicit())
    for mode, kept in ((OneStep(), 1), (Truncate(1), 1), (Truncate(5), 5), (Truncate(25), 25), (Truncate(100), 100)):
        part = torch.eye(3, dtype=torch.float64) - torch.linalg.matrix_power(contraction, kept)
        for options in ({}, {"grad_tol": 1e-12}):  # the last steps, or corrections at the best point
            found = gradient(mode, **options)
            assert torch.allclose(found, cotangent @ part @ covariance @ pull, rtol=0, atol=1e-8)
        errors.append(float((found - implicit).norm() / implicit.norm()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-5


def test_one_step_of_gauss_newton_approaches_implicit_as_the_solve_grows() -> None:
    """Data on the decoder's surface and a flat prior: no residual, so Gauss–Newton is Newton at the solution."""
    likelihood = Gaussian(nets.mlp(2, [6], 5, nn.Tanh), 2, 0.5, prior=Flat(2)).double()
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    start = Constant(truth + 0.3)

    def gradient(mode: Adjoint, steps: int) -> dict[str, list[Tensor]]:
        problem = Problem(likelihood, Ascent(start, GaussNewton(), max_steps=steps, adjoint=mode), downstream)
        with torch.no_grad():
            problem.x.copy_(likelihood(truth).mean)
        return problem.gradient()

    reference = gradient(Implicit(), 30)
    errors = [apart(gradient(OneStep(), steps), reference) for steps in (1, 2, 3, 30)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < 1e-6


@pytest.mark.parametrize("rule", ["learned rate", "adam", "momentum"])
def test_truncate_keeps_exactly_the_last_steps(rule: str) -> None:
    """Equals ``Unroll`` for n >= T; for smaller n, finite differences of the last n steps from their start."""
    likelihood = neural()
    engine = ascent(likelihood, rule, "downstream", max_steps=5)
    problem = Problem(likelihood, engine, downstream)
    unrolled = problem.gradient()
    for mode, same in ((Truncate(5), True), (Truncate(9), True), (Truncate(3), False)):
        engine.adjoint = mode
        assert (apart(problem.gradient(), unrolled) < 1e-12) == same
    assert bool((flat(problem.gradient()["start"]) == 0).all())
    if rule == "learned rate":
        with torch.no_grad():
            engine.max_steps = 2
            reached = engine(likelihood, problem.x).z[0]
        tail = Ascent(Constant(reached), engine.step, max_steps=3)
        claimed, true = (Problem(likelihood, e, downstream).gradient() for e in (_at(engine, 5), tail))
        assert apart(claimed, true, ["decoder", "x", "rate"]) < 1e-12


def _at(engine: Ascent, steps: int) -> Ascent:
    engine.max_steps = steps
    return engine


def test_truncated_lbfgs_corrections_converge_to_implicit() -> None:
    solved = Solved()
    reference = solved.reference("downstream")
    errors = []
    for mode in (OneStep(), Truncate(3), Truncate(30)):
        engine = Ascent(step=LBFGS(), max_steps=100, grad_tol=1e-10, adjoint=mode)
        errors.append(apart(solved.problem(engine, downstream).gradient(), reference))
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.2 and errors[-1] < 1e-6


class Cliff(nn.Module):
    """A decoder whose output is NaN beyond z = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 2)
        nn.init.ones_(self.line.weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.line(z) + (2 - z).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_a_sample_that_fails_leaves_the_gradient_of_the_others_alone(mode: str, steps: int) -> None:
    """A failed row must be left out of the graph, not only of the sum, since 0 · NaN is NaN."""
    likelihood = Gaussian(Cliff(), 1, 0.5).double()
    x = torch.tensor([[0.1, 0.2], [50.0, 50.0], [-0.3, 0.1]], dtype=torch.float64)
    engine = Ascent(step=GradientAscent(0.05, learn=True), max_steps=steps, adjoint=MODES[mode]()).double()
    parameters = [*likelihood.parameters(), *engine.parameters()]

    def gradient(kept: list[int], rows: Tensor) -> Tensor:
        values = readout(engine(likelihood, rows).z)[kept]
        if not values.requires_grad:
            return torch.zeros(())
        return flat([g for g in torch.autograd.grad(values.sum(), parameters, allow_unused=True) if g is not None])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Implicit reports the failed sample
        found = engine(likelihood, x)
        assert found.solve is not None and found.solve.summary() == "max_steps: 2, nonfinite: 1"
        assert bool(torch.isfinite(found.z).all()) and bool(torch.isfinite(found.log_joint).all())
        assert torch.allclose(gradient([0, 2], x), gradient([0, 1], x[[0, 2]]))
        assert bool(torch.isfinite(gradient([0, 1, 2], x)).all())


@pytest.mark.parametrize("rule", ["lbfgs", "gauss-newton", "matrix-free", "adam"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Implicit gradients need")
def test_samples_that_overflow_are_constants_and_leave_the_gradient_of_the_others_alone(mode: str, rule: str) -> None:
    """Rows without a finite start, and with errors whose square or fourth power overflows single precision."""
    likelihood = Gaussian(Cliff(), 1, 0.5)
    x = torch.tensor([[0.1, 0.2], [0.3, 0.2], [3e38, 1.0], [1e12, 1e12], [-0.3, 0.1]])
    start = torch.tensor([[0.5], [5.0], [0.5], [0.5], [-0.5]])

    def gradient(rows: list[int]) -> tuple[Tensor, Tensor]:
        engine = Ascent(Constant(start[rows]), RULES[rule]((1,)), 4, adjoint=MODES[mode]())
        found = engine(likelihood, x[rows])
        assert found.solve is not None
        loss = (readout(found.z) + found.log_joint[0])[found.solve.status[0] != Status.nonfinite].sum()
        return found.solve.status[0], flat(torch.autograd.grad(loss, list(likelihood.parameters())))

    status, found = gradient([0, 1, 2, 3, 4])
    assert [name == Status.nonfinite for name in status.tolist()] == [False, True, True, True, False]
    assert bool(found.isfinite().all()) and torch.allclose(found, gradient([0, 4])[1], rtol=1e-4)


@pytest.mark.parametrize("mode", [OneStep, lambda: Truncate(1), lambda: Truncate(3)])
@pytest.mark.parametrize("options", [{}, {"tol": 1e-9}], ids=["last", "best"])
def test_a_correction_that_falls_is_not_taken(mode: Callable[[], Adjoint], options: dict[str, Any]) -> None:
    """Of -½ a (z - x)² a step of rate 1 multiplies the error by 1 - a: at a = 0.5 a correction helps, at 3 it harms.

    Where it is not taken the code is the constant that ``Detach`` returns, and so is its gradient.
    """
    if isinstance(mode(), Truncate) and not options:
        return  # the last steps themselves
    model = Landscape(lambda x, z: -0.5 * x[:, 1] * (z[..., 0] - x[:, 0]).square(), 1, (2,))
    x = torch.tensor([[1.0, 0.5], [1.0, 3.0], [1.0, 1e30]], dtype=torch.float64, requires_grad=True)
    codes, engines = [], [Ascent(Zeros(), GradientAscent(1.0), 2, adjoint=m, **options) for m in (mode(), Detach())]
    for engine in engines:
        codes.append(engine.double()(model, x).z[0, :, 0])
    corrected, found = codes
    assert torch.equal(corrected[1:], found[1:]) and corrected[0] > found[0]
    (gradient,) = torch.autograd.grad(corrected.sum(), x)
    steps = getattr(engines[0].adjoint, "steps", 1)
    assert gradient[0, 0].item() == pytest.approx(1 - 0.5**steps) and bool((gradient[1:] == 0).all())


def test_rows_of_a_linear_system_that_overflow_are_left_alone() -> None:
    """A row whose product overflows does not change the others, although ∞ · 0 is NaN."""
    curvature = torch.tensor([[2.0, 1.0], [1e38, 3e38], [1.0, 4.0]]).view(1, 3, 2)
    right = torch.tensor([[1.0, -2.0], [1e5, 1e10], [3.0, 0.5]]).view(1, 3, 2)
    found, residual = conjugate_gradients(lambda v: curvature * v, right, 12, 1e-6)
    assert torch.allclose(found[0, [0, 2]], (right / curvature)[0, [0, 2]])
    assert bool(found.isfinite().all()) and bool(residual[0, [0, 2]].isfinite().all())
    solved = Implicit().solve(lambda v: curvature * v, right)
    assert bool(solved.isfinite().all())


@pytest.mark.parametrize("tol", [None, 1e-4])
@pytest.mark.parametrize("mode", MODES)
def test_no_graph_survives_evaluation(mode: str, tol: float | None) -> None:
    likelihood = neural()
    engine = ascent(likelihood, "learned rate", "elbo", max_steps=3, tol=tol, trace=True, adjoint=MODES[mode]())
    problem = Problem(likelihood, engine, elbo)
    with torch.no_grad():
        found = engine(likelihood, problem.x)
    assert found.solve is not None and found.solve.trace is not None and found.q is not None and found.log_q is not None
    tensors = [found.z, found.log_joint, found.log_q, found.q.mean, found.solve.grad_norm, found.solve.trace]
    assert not any(t.requires_grad for t in tensors)


def test_the_account_of_a_solve_holds_no_graph() -> None:
    likelihood = neural()
    engine = ascent(likelihood, "learned rate", "downstream", max_steps=3, restarts=1, trace=True)
    solve = engine(likelihood, Problem(likelihood, engine, downstream).x).solve
    assert solve is not None and solve.trace is not None
    assert not any(t.requires_grad for t in (solve.status, solve.grad_norm, solve.evaluations, solve.trace))


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.slow
def test_memory_is_flat_over_200_calls() -> None:
    """For every adjoint, with and without a graph; the cycle collector is off, so that cycles would show too."""
    likelihood = neural()
    rules = ("learned rate", "adam", "lbfgs", "lbfgs", "adam", "langevin")
    engines = [
        ascent(likelihood, rule, "downstream", max_steps=2, adjoint=build()).double()
        for build, rule in zip(MODES.values(), rules, strict=True)
    ]
    x = torch.randn(3, 5, dtype=torch.float64)

    def call(i: int) -> None:
        training = i % 12 < 6
        with torch.set_grad_enabled(training):
            loss = joint(engines[i % 6](likelihood, x)).sum()
        if training:
            torch.autograd.grad(loss, list(likelihood.parameters()))

    for i in range(12):
        call(i)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors()
        for i in range(200):
            call(i)
        assert live_tensors() <= before
    finally:
        gc.enable()


class Kept:
    """A tensor that a graph saved; it lives as long as the graph."""

    def __init__(self, value: Tensor):
        self.value = value


def saved(adjoint: Adjoint, steps: int) -> int:
    """How many tensors the graph of one forward pass holds."""
    likelihood = neural()
    engine = ascent(likelihood, "learned rate", "downstream", max_steps=steps, adjoint=adjoint)
    x = Problem(likelihood, engine, downstream).x
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(value: Tensor) -> Kept:
        kept = Kept(value.detach())
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
        z = engine(likelihood, x).z
    assert z.grad_fn is not None
    gc.collect()
    return len(alive)


def test_checkpoint_keeps_no_graph_of_its_steps() -> None:
    assert saved(CheckpointedUnroll(), 2) == saved(CheckpointedUnroll(), 12)
    assert saved(Unroll(), 12) > 5 * saved(Unroll(), 2)


def test_checkpoint_replays_without_touching_the_random_stream() -> None:
    likelihood = neural()
    engine = ascent(likelihood, "adjusted langevin", "downstream", max_steps=4, adjoint=CheckpointedUnroll())
    loss = Problem(likelihood, engine, downstream).loss()
    state = torch.get_rng_state()
    torch.autograd.grad(loss, list(likelihood.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
