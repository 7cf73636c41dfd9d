"""What every engine, likelihood and system keeps, whatever it is: each case of ``cases.py`` runs through all of it."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from cases import (
    BRIDGES,
    LIKELIHOODS,
    OBJECTIVE_PAIRS,
    ONCE,
    PAIRS,
    LikelihoodCase,
    Pair,
    classes,
    orthant,
    real,
    seed,
    sequences,
    sphere,
    unit,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gae import Autoencoder
from gae.inference import Argmax, ClosedForm, Constant, Encoding, Inference, IteratedConditionalModes, Status, Zeros
from gae.inference.laws import point_of
from gae.likelihood import (
    ClosedFormLearning,
    CodebookDistribution,
    ExactPosterior,
    FlatDistribution,
    Likelihood,
    Relational,
)

BATCH = 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def each(cases: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


every_likelihood = each(LIKELIHOODS)
untyped = pytest.mark.usefixtures("unchecked_types")  # `test_encoding_is_complete` checks the types of each pair


# What an engine or a likelihood does to its surroundings, whatever the other one is.
each_once = pytest.mark.parametrize("pair", ONCE, ids=lambda pair: pair.name, indirect=True, scope="module")


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    """A case, for all its contracts in turn."""
    return request.param


class Encoded(NamedTuple):
    """A model, its data, and the encoding that seed 2 makes of them; contracts read them and change nothing."""

    model: Autoencoder
    x: Tensor
    encoding: Encoding


def encode(pair: Pair) -> Encoded:
    model = pair.build()
    x = pair.data(model, BATCH)
    seed(2)
    return Encoded(model, x, model.encode(x))


@pytest.fixture(scope="module")
def encoded(pair: Pair) -> Encoded:
    return encode(pair)


class SameNoise(TorchDispatchMode):
    """Random numbers that depend on neither place nor size of the batch: all rows along S and B get the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return value
        self.draws += 1
        return self._fixed(func, value, args)

    def _fixed(self, func: Any, value: Tensor, args: Any) -> Tensor:
        """The same draw for every row of a batch."""
        match func._schema.name:
            case "aten::randn_like":
                drawn = self.pattern(value)
            case "aten::randint":
                assert args[0] == 2
                drawn = (self.pattern(value.double()) > 0).to(value)
            case "aten::rand_like" | "aten::rand":
                drawn = torch.full_like(value, 0.3)
            case "aten::bernoulli" | "aten::poisson":
                drawn = args[0].round()
            case "aten::_sample_dirichlet":
                drawn = args[0] / args[0].sum(-1, keepdim=True)
            case "aten::normal":
                drawn = args[0] + args[1] * self.pattern(value)
            case "aten::normal_" | "aten::uniform_":  # inside (-1, 1), as a quantile needs it
                drawn = value.copy_(0.9 * self.pattern(value))
            case "aten::multinomial":
                weights, samples = args[:2]
                levels = torch.linspace(0.1, 0.9, samples, dtype=weights.dtype, device=weights.device)
                drawn = (weights.cumsum(1).unsqueeze(2) < levels).sum(1)
            case _:
                raise NotImplementedError(f"{func} draws random numbers that are not controlled here")
        return drawn

    def pattern(self, like: Tensor) -> Tensor:
        row = torch.linspace(-1.0, 0.5, like.shape[-1], dtype=like.dtype, device=like.device)
        return row.expand(like.shape).clone()


def noise(case: Pair) -> Any:
    return SameNoise() if case.stochastic else nullcontext()


def tensors(encoding: Encoding) -> dict[str, Tensor]:
    """All that an encoding holds, with S and B as dimensions 0 and 1."""
    found = {name: getattr(encoding, name) for name in ("z", "log_joint", "k", "log_q", "log_volume", "volume_error")}
    if encoding.q is not None:
        point = point_of(encoding.q)
        found["q.point"] = point if point.dim() == encoding.z.dim() else point.unsqueeze(0)
        found["q.log_prob"] = encoding.q.log_prob(encoding.z)
    if encoding.solve is not None:
        found |= {name: getattr(encoding.solve, name) for name in ("status", "steps", "evaluations", "grad_norm")}
        if encoding.solve.trace is not None:
            found["trace"] = encoding.solve.trace.movedim(0, 2)
    return {name: value.detach() for name, value in found.items() if value is not None}


def reconstructed(model: Autoencoder, x: Tensor) -> Tensor:
    """The reconstruction; where codes do not determine data, the refusal, and x."""
    if not isinstance(model.likelihood, Relational):
        return model.reconstruct(x)
    with pytest.raises(TypeError, match="has no map from codes to data"):
        model.reconstruct(x)
    return x


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        other = wanted[name]
        torch.testing.assert_close(
            value, other, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_encoding_is_complete(pair: Pair, encoded: Encoded) -> None:
    model, x, encoding = encoded
    samples, z = pair.samples or model.likelihood.components, model.likelihood.latent_shape
    assert encoding.z.shape == (samples, BATCH, *z)
    assert encoding.log_joint.shape == (samples, BATCH)
    assert encoding.z.isfinite().all() and encoding.log_joint.isfinite().all()
    assert encoding.engine == type(model.inference).__name__
    assert encoding.prior.batch_shape == () and encoding.prior.event_shape == z
    assert encoding.point.shape == (BATCH, *z)
    assert f"S={samples}, B={BATCH}" in encoding.summary()
    assert reconstructed(model, x).shape == x.shape and reconstructed(model, x).isfinite().all()
    assert model.decode(encoding.z, encoding.k).batch_shape == (samples, BATCH)
    assert (encoding.log_q is not None) == pair.density
    assert encoding.q is not None or not pair.density
    assert_density(encoding)
    assert_component(encoding, model.likelihood.components)
    stops = [getattr(model.inference, name, None) for name in ("grad_tol", "stop")]
    assert_solve(encoding, any(rule is not None for rule in stops) or type(model.inference) is IteratedConditionalModes)


def assert_density(encoding: Encoding) -> None:
    if encoding.log_q is not None and encoding.q is not None:
        samples, batch = encoding.log_joint.shape
        assert encoding.log_q.shape == (samples, batch)
        assert encoding.q.event_shape == encoding.prior.event_shape
        assert encoding.q.batch_shape in [(batch,), (1, batch), (samples, batch)]
        if encoding.k is None:
            again = encoding.q.log_prob(encoding.z.clone())  # of a flow: by the inverse of the transform that drew z
            torch.testing.assert_close(encoding.log_q, again, rtol=1e-10, atol=1e-10)


def assert_component(encoding: Encoding, components: int) -> None:
    if encoding.k is None:
        assert encoding.component is None
    else:
        assert encoding.k.shape == encoding.log_joint.shape and encoding.k.dtype == torch.long
        assert encoding.k.min() >= 0 and encoding.k.max() < components
        best = encoding.log_joint.argmax(0)
        assert torch.equal(encoding.component, encoding.k[best, torch.arange(len(best))])


def assert_solve(encoding: Encoding, stops: bool) -> None:
    solve, shape = encoding.solve, encoding.log_joint.shape
    if solve is not None:
        for value in (solve.status, solve.steps, solve.evaluations, solve.grad_norm):
            assert value.shape == shape
        allowed = {Status.max_steps, Status.diverged} | ({Status.converged} if stops else set())
        assert set(solve.status.unique().tolist()) <= allowed
        assert solve.trace is None or solve.trace.shape[1:] == shape
        for status in solve.status.unique().tolist():
            assert f"{Status(status).name}: {int((solve.status == status).sum())}" in encoding.summary()


@untyped
def test_log_joint_is_that_of_the_model(encoded: Encoded) -> None:
    model, x, encoding = encoded
    likelihood = model.likelihood
    seed(2)
    code = model.inference.infer(likelihood, x)
    wanted = likelihood.prior.log_prob(encoding.z) + likelihood(encoding.z, encoding.k).log_prob(x)
    if encoding.k is not None:
        wanted = wanted + likelihood.log_weights[encoding.k]
    scores = [encoding.log_joint, likelihood.log_joint(x, code.z, code.k), likelihood.bind(x)(code.z, code.k)]
    for score in scores if code.log_joint is None else [*scores, code.log_joint]:
        torch.testing.assert_close(score, wanted, rtol=1e-10, atol=1e-10)


@untyped
def test_codes_do_not_depend_on_the_batch(pair: Pair, encoded: Encoded) -> None:
    model, x, _ = encoded
    order = torch.tensor([3, 0, 4, 2, 1])
    with noise(pair) as controlled:
        whole = tensors(model.encode(x))
        shuffled = tensors(model.encode(x[order]))
        sizes: list[int] = []
        hook = model.inference.register_forward_pre_hook(lambda engine, given: sizes.append(len(given[1])))
        joined = tensors(model.encode(x, batch_size=BATCH - 1))
        hook.remove()
    assert sizes == [BATCH - 1, 1]
    assert controlled is None or controlled.draws > 0
    assert_same(joined, whole, 1e-12)
    assert_same(shuffled, {name: value[:, order] for name, value in whole.items()}, 1e-12)


def surroundings() -> list[Any]:
    """What a call could change behind the caller's back."""
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        pyro.settings.get(),
        sorted(pyro.get_param_store().keys()),
        str(np.random.get_state()),
    ]


@each_once
@untyped
def test_nothing_else_changes(pair: Pair, encoded: Encoded) -> None:
    model, x, _ = encoded
    state = {name: value.clone() for name, value in [*model.state_dict().items(), ("x", x)]}
    flags = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    around, generator = surroundings(), torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), generator) != pair.stochastic
    reconstructed(model, x)
    assert surroundings() == around
    assert len(pyro.get_param_store()) == 0
    assert_same(model.state_dict() | {"x": x}, state)
    assert flags == ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is None and not x.requires_grad


@each_once
@untyped
def test_no_graph_without_gradients(encoded: Encoded) -> None:
    model, x, with_graph = encoded
    with torch.no_grad():
        encoding = model.encode(x)
        loss = model(x)
    values = [encoding.z, encoding.log_joint, encoding.log_q, encoding.point, loss]
    values += [encoding.q.mean] if encoding.q is not None and encoding.k is not None else []
    assert not any(value.requires_grad for value in values if value is not None)
    if encoding.solve is not None and encoding.solve.trace is not None:
        assert not encoding.solve.trace.requires_grad
    assert with_graph.log_joint.requires_grad


@each_once
@untyped
def test_state_and_seed_make_the_codes(pair: Pair, encoded: Encoded) -> None:
    model, x, encoding = encoded
    other, wanted = pair.build(start=1), tensors(encoding)

    def codes(model: Autoencoder, start: int = 2) -> dict[str, Tensor]:
        seed(start)
        return tensors(model.encode(x))

    assert not torch.equal(codes(other)["log_joint"], wanted["log_joint"])
    other.load_state_dict(model.state_dict())
    for found in (codes(model), codes(other)):
        assert_same(found, wanted)
    if pair.copied:
        assert_same(codes(deepcopy(model)), wanted)
    else:
        with pytest.raises(TypeError, match=r"a copy would share .*`nn.Module` or a `PyroModule`"):
            deepcopy(model)
    if not pair.stochastic:
        assert_same(codes(model, 3), wanted)
    elif pair.density:
        assert not torch.equal(codes(model, 3)["log_q"], wanted["log_q"])


@each([case for case in PAIRS + OBJECTIVE_PAIRS if not case.surrogate])
@untyped
def test_gradient_is_that_of_the_loss(case: Pair) -> None:
    model = case.build()
    x = case.data(model, BATCH)
    loss = with_fixed_code(model, x) if case.detached else lambda: model(x)
    learned = model.likelihood if case.surrogate else model  # an encoder's gradient is then of something else
    observed = [x] if case.draw is real and not case.surrogate else []
    variables = [*(p for p in learned.parameters() if p.requires_grad), *observed]
    x.requires_grad_(case.draw is real)
    gradients = replayed(lambda: torch.autograd.grad(model(x), variables, allow_unused=True))
    for _ in range(2):
        directions = [torch.randn_like(variable) for variable in variables]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
        assert slope != 0
        wanted = replayed(lambda directions=directions: central_difference(loss, variables, directions))
        torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-7)


def with_fixed_code(model: Autoencoder, x: Tensor) -> Callable[[], Tensor]:
    """The loss as a function of the model alone: z and k stay what they are now, and q too, unless it has a graph."""
    encoding = replayed(lambda: model.encode(x))

    def log_density() -> Tensor | None:
        if encoding.log_q is None or not encoding.log_q.requires_grad:
            return encoding.log_q
        q = replayed(lambda: model.encode(x)).q
        return None if q is None else q.log_prob(encoding.z)

    def loss() -> Tensor:
        log_q = log_density()
        log_joint = model.likelihood.log_joint(x, encoding.z.detach(), encoding.k)
        return -model.aggregate(model.objective(replace(encoding, log_joint=log_joint, log_q=log_q)))

    return loss


def replayed(compute: Callable[[], Any]) -> Any:
    """The value under the same noise as every other replayed one, leaving the generator as it was."""
    before = torch.get_rng_state()
    seed(3)
    value = compute()
    torch.set_rng_state(before)
    return value


@torch.no_grad()
def central_difference(
    loss: Callable[[], Tensor], variables: list[Tensor], directions: list[Tensor], step: float = 1e-6
) -> Tensor:
    values = []
    for move in (step, -2 * step):
        for variable, direction in zip(variables, directions, strict=True):
            variable += move * direction
        values.append(replayed(loss))
    for variable, direction in zip(variables, directions, strict=True):
        variable += step * direction
    return (values[0] - values[1]) / (2 * step)


@each_once
@untyped
@pytest.mark.parametrize("device", DEVICES)
def test_dtype_and_device_follow_the_model(pair: Pair, encoded: Encoded, device: str) -> None:
    in_double = [*tensors(encoded.encoding).values(), encoded.model(encoded.x)]
    assert {value.dtype for value in in_double if value.is_floating_point()} == {torch.float64}
    model = pair.build(torch.float32).to(device)
    x = pair.data(model, BATCH).to(device)
    values = [*tensors(model.encode(x)).values(), model(x), reconstructed(model, x), x]
    assert {value.dtype for value in values if value.is_floating_point()} == {torch.float32}
    assert {value.device.type for value in values} == {device}


def codes_of(likelihood: Likelihood, samples: int, batch: int) -> Tensor:
    return inside(likelihood, torch.randn(samples, batch, *likelihood.latent_shape, dtype=torch.float64))


def inside(likelihood: Likelihood, z: Tensor) -> Tensor:
    """Codes where the prior is not 0."""
    if isinstance(likelihood.prior, CodebookDistribution):
        return likelihood.prior.vectors.detach()[likelihood.prior.nearest(z)]
    return z.abs() if orthant(likelihood) else z


def built(case: LikelihoodCase) -> tuple[Likelihood, Tensor]:
    likelihood = case.build().double()
    for parameter in likelihood.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return likelihood, case.data((BATCH, *likelihood.event_shape)).double()


@every_likelihood
def test_given_is_log_joint(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    bound = likelihood.bind(x)
    z = codes_of(likelihood, 3, BATCH)
    wanted = likelihood.prior.log_prob(z) + likelihood(z).log_prob(x)
    for found in (bound(z), likelihood.log_joint(x, z)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if likelihood.components:
        for k in (
            torch.arange(3).remainder(likelihood.components)[:, None],
            torch.randint(likelihood.components, (3, 5)),
        ):
            wanted = likelihood.prior.log_prob(z) + likelihood.log_weights[k] + likelihood(z, k).log_prob(x)
            for found in (bound(z, k), likelihood.log_joint(x, z, k)):
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def has_evidence(likelihood: Likelihood) -> bool:
    return isinstance(likelihood, ExactPosterior) and not isinstance(likelihood.prior, FlatDistribution)


@each([case for case in LIKELIHOODS if has_evidence(case.build())])
@pytest.mark.parametrize("samples", [None, 4])
def test_the_exact_posterior_leaves_no_gap(case: LikelihoodCase, samples: int | None) -> None:
    likelihood, x = built(case)
    assert isinstance(likelihood, ExactPosterior)
    encoding = ClosedForm(samples)(likelihood, x)
    evidence = likelihood.log_evidence(x).log_p.expand(samples or 1, BATCH)
    assert encoding.log_q is not None
    torch.testing.assert_close(encoding.log_joint - encoding.log_q, evidence, rtol=1e-10, atol=1e-10)


@every_likelihood
def test_decoding_keeps_leading_dimensions(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    for lead in ((), (1,), (2,), (2, 3)):
        z = inside(likelihood, torch.randn(*lead, *likelihood.latent_shape, dtype=torch.float64))
        found, rows = likelihood(z), likelihood(z.unsqueeze(0).flatten(0, len(lead))).log_prob(x[0])
        assert (found.batch_shape, found.event_shape) == (lead, likelihood.event_shape)
        torch.testing.assert_close(found.log_prob(x[0]).flatten(), rows, rtol=1e-12, atol=1e-12)
        if not isinstance(likelihood, Relational):
            assert found.sample().shape == (*lead, *likelihood.event_shape)


@every_likelihood
def test_samples_and_reconstructions_can_be_encoded(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    model = Autoencoder(likelihood, Zeros())
    likelihood.check(x)
    if not isinstance(likelihood.prior, FlatDistribution):
        drawn = model.sample(4)
        assert drawn.shape == (4, *likelihood.event_shape)
        likelihood.check(drawn)
    if case.data in (real, unit, sphere, classes, sequences):  # the mean of counts is no count
        likelihood.check(reconstructed(model, x))


@every_likelihood
def test_an_empty_batch_is_refused(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    with pytest.raises(ValueError, match="x is empty: a batch needs at least one observation"):
        Autoencoder(likelihood, Zeros()).encode(x[:0])


@every_likelihood
def test_prior_follows_the_model(case: LikelihoodCase) -> None:
    likelihood, _ = built(case)
    assert (likelihood.prior.batch_shape, likelihood.prior.event_shape) == ((), likelihood.latent_shape)
    if isinstance(likelihood.prior, FlatDistribution):
        with pytest.raises(NotImplementedError, match="flat prior is improper and cannot be sampled"):
            likelihood.prior.sample()
    else:
        assert likelihood.prior.sample().dtype == torch.float64


@every_likelihood
@pytest.mark.parametrize("bridge", BRIDGES)
def test_bridge_has_the_same_density(case: LikelihoodCase, bridge: Callable[..., Any]) -> None:
    likelihood, x = built(case)
    z = codes_of(likelihood, 1, BATCH)[0]
    model = pyro.poutine.condition(bridge(likelihood), data={"z": z})
    with pyro.get_param_store().scope():
        trace = pyro.poutine.trace(model).get_trace(x)
    wanted = likelihood.log_joint(x, z.unsqueeze(0)).sum()
    torch.testing.assert_close(trace.log_prob_sum(), wanted, rtol=1e-10, atol=1e-10)


@each([case for case in LIKELIHOODS if isinstance(case.build(), ClosedFormLearning)])
@pytest.mark.filterwarnings("ignore:The noise scale")  # few samples, which charts may fit exactly
def test_statistics_add_over_batches(case: LikelihoodCase) -> None:
    likelihood, x = built(case)
    assert isinstance(likelihood, ClosedFormLearning)
    inner = ClosedForm() if likelihood.latent_shape.numel() else None
    engine: Inference = (
        Argmax(inner) if likelihood.components else Constant(torch.ones(likelihood.latent_shape).double())
    )
    whole, *parts = [likelihood.statistics(part, engine.infer(likelihood, part)) for part in (x, x[:2], x[2:])]
    total = parts[0] + parts[1]
    for name in [field.name for field in fields(whole)]:
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    assert likelihood.maximize(total) > 0
