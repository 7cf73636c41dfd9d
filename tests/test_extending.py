"""The examples of ``notes/extending.md`` run as they stand there, and meet the contracts that every part meets."""

import inspect
import re
from collections.abc import Callable
from functools import cache, partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import test_contract
import torch
from cases import (
    LIKELIHOODS,
    SMALL,
    EngineCase,
    LikelihoodCase,
    Pair,
    count,
    image_head,
    net,
    normal,
    proper,
    real,
    step_case,
)
from cases import pair as pair_of
from scipy import stats
from torch import nn

from gae import nets, systems
from gae.inference import Amortized, Ascent, Encoding, Zeros
from gae.likelihood import HEADS, Gaussian, Likelihood, LinearMixture, Measured
from gae.objective import elbo, iwae, joint
from gae.reports.comparison import is_mass

ROOT = Path(__file__).resolve().parent.parent
NOTE = (ROOT / "notes" / "extending.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (?P<title>.+?)$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def examples() -> dict[str, Any]:
    """Everything that the code blocks of the note define; each section by itself, as if in a file of its own."""
    defined: dict[str, Any] = {}
    for section in SECTION.finditer(NOTE):
        names: dict[str, Any] = {"__name__": "extending"}
        for block in BLOCK.findall(section["body"]):
            exec(compile(block, f"notes/extending.md, {section['title']}", "exec"), names)
        defined |= names
    return defined


def example(name: str) -> Any:
    return examples()[name]


def one_likelihood(name: str) -> LikelihoodCase:
    return next(case for case in LIKELIHOODS if case.name == name)


HEAD = LikelihoodCase("negative-binomial", lambda: example("NegativeBinomial")(net(2, 3), 2), count)
SHIFTED = LikelihoodCase("shifted", lambda: Measured(image_head(), example("CircularShift")(1, 2)))
STEP = step_case("nesterov", lambda: example("Nesterov")(0.05))
SEARCH = EngineCase("random-search", lambda m: example("RandomSearch")(4), proper, stochastic=True)
ZEROS = EngineCase("zeros", lambda m: Zeros())


class Guide(nn.Module):
    """q(z|x), of which the engine takes three draws."""

    def __init__(self, likelihood: Likelihood):
        super().__init__()
        self.network = nets.mlp(likelihood.event_shape, (5,), (2, *likelihood.latent_shape))

    def forward(self, x: torch.Tensor) -> Any:
        return normal(self.network(x))


DRAWS = EngineCase("draws", lambda m: Amortized(Guide(m), 3), stochastic=True, density=True, samples=3)

PAIRS = [
    *(pair_of(one_likelihood(name), STEP, joint) for name in ("gaussian-scalar", "bernoulli", "ppca")),
    *(pair_of(HEAD, engine, joint) for engine in (ZEROS, STEP)),
    pair_of(SHIFTED, STEP, joint),
    *(pair_of(one_likelihood(name), SEARCH, joint) for name in ("gaussian-scalar", "bernoulli")),
    pair_of(one_likelihood("bernoulli"), DRAWS, lambda encoding: example("renyi")(encoding)),
    Pair("rae", lambda: example("rae")((4,), **SMALL), real, False, False, False, 1),
]


def contracts(kind: type) -> list[Callable[..., None]]:
    """The tests of ``test_contract`` of one case of this kind, as functions of the case."""
    found: list[Callable[..., None]] = []
    kinds = {kind, test_contract.Encoded} if kind is Pair else {kind}
    for name, function in vars(test_contract).items():
        if name.startswith("test_"):
            parameters = inspect.signature(function).parameters
            of_this_kind = bool(kinds & {parameter.annotation for parameter in parameters.values()})
            closed_form = name == "test_statistics_add_over_batches"  # of likelihoods that learn in closed form alone
            if of_this_kind and parameters.keys() <= {"case", "pair", "encoded", "device"} and not closed_form:
                found.append(wraps(function)(partial(kept, function)))
    return found


def kept(contract: Callable[..., None], case: Any) -> None:
    """Runs a contract on a case."""
    wanted = inspect.signature(contract).parameters
    given = {"case": case, "pair": case, "device": "cpu"}
    if "encoded" in wanted:
        given["encoded"] = test_contract.encode(case)
    contract(**{name: given[name] for name in wanted})


@pytest.mark.parametrize("contract", contracts(Pair), ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_examples_keep_the_contracts_of_an_autoencoder(case: Pair, contract: Callable[..., None]) -> None:
    contract(case)


@pytest.mark.parametrize("contract", contracts(LikelihoodCase), ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("case", [HEAD, SHIFTED], ids=lambda case: case.name)
def test_examples_keep_the_contracts_of_a_likelihood(case: LikelihoodCase, contract: Callable[..., None]) -> None:
    contract(case)


def test_there_are_contracts() -> None:
    assert len(contracts(Pair)) >= 7 and len(contracts(LikelihoodCase)) >= 4


def test_nesterov_takes_the_steps_of_torch() -> None:
    model, x = Gaussian(net(2, 3), 2, 0.7).double(), torch.randn(1, 3, dtype=torch.float64)
    code = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([code], 0.03, momentum=0.9, nesterov=True, maximize=True)
    for _ in range(20):
        optimizer.zero_grad()
        model.log_joint(x, code).sum().backward()
        optimizer.step()
    z = Ascent(step=example("Nesterov")(0.03), max_steps=20)(model, x).z
    torch.testing.assert_close(z, code, rtol=1e-12, atol=1e-12)


def test_the_negative_binomial_has_scipys_mass_and_the_mean_that_it_says() -> None:
    model = example("NegativeBinomial")(nn.Identity(), 2, 3.0).double()
    z, x = torch.tensor([[[0.3, -1.0]]], dtype=torch.float64), torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    mean = z.exp().numpy()
    wanted = stats.nbinom.logpmf(x.numpy(), 3.0, 3.0 / (3.0 + mean)).sum()
    assert model.log_likelihood(x, model.outputs(z)).item() == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(model(z).mean, z.exp())
    assert type(model).support.is_discrete


def test_a_head_of_that_name_is_one_of_every_system_and_its_nats_are_those_of_a_mass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = example("NegativeBinomial")
    assert not is_mass({"configuration": {"head": "gaussian"}})
    monkeypatch.setitem(HEADS, "negative-binomial", head)
    assert isinstance(systems.build("vae", (3,), head="negative-binomial", **SMALL).likelihood, head)
    assert is_mass({"configuration": {"head": "negative-binomial"}})


def test_shifts_are_undone_by_their_adjoint() -> None:
    x, shift = torch.randn(2, 3, 4, 5), example("CircularShift")(1, 2)
    assert torch.equal(shift.adjoint(shift(x)), x) and torch.equal(shift(x)[..., 1, 2], x[..., 0, 0])


def test_renyis_bound_lies_between_its_limits() -> None:
    model = one_likelihood("bernoulli").build()
    encoding = DRAWS.build(model)(model, torch.ones(6, *model.event_shape))
    renyi = example("renyi")
    torch.testing.assert_close(renyi(encoding, 0.0), iwae(encoding))
    torch.testing.assert_close(renyi(encoding, 1 - 1e-3), elbo(encoding), rtol=1e-3, atol=1e-2)
    values = [renyi(encoding, alpha) for alpha in (-1.0, 0.0, 0.5, 0.9)]
    assert all(bool((higher >= lower).all()) for higher, lower in pairwise(values))
    with pytest.raises(ValueError, match="returns no density"):
        renyi(Zeros()(model, torch.ones(6, *model.event_shape)))


def test_random_search_finds_the_best_of_its_draws() -> None:
    model, x = LinearMixture(1, 2, (3,)), torch.randn(4, 3)

    def searched(draws: int) -> Encoding:
        torch.manual_seed(0)
        return example("RandomSearch")(draws)(model, x)

    torch.manual_seed(0)
    drawn = model.prior.sample(torch.Size((50, 4)))
    assert torch.equal(searched(50).z[0], drawn[model.bind(x)(drawn).argmax(0), torch.arange(4)])
    with pytest.raises(NotImplementedError, match="flat prior"):
        example("RandomSearch")()(LinearMixture(1, 2, (3,), flat_prior=True), x)


def test_a_regularised_autoencoder_penalises_the_squares_of_its_codes() -> None:
    model, x = example("rae")((4,), **SMALL), torch.randn(7, 4)
    encoding = model.encode(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    wanted = model.likelihood(encoding.z).log_prob(x) + normal.log_prob(encoding.z).sum(-1)
    torch.testing.assert_close(-model(x), wanted.mean())


def test_the_files_that_the_note_names_are_there() -> None:
    named = set(re.findall(r"`((?:gae|tests)/[\w/.]+\.py)`", NOTE))
    assert named and [path for path in sorted(named) if not (ROOT / path).is_file()] == []
