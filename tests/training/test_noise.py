"""Noise that several processes share is that of one process."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Cauchy,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    RelaxedBernoulli,
    Uniform,
)

from gae.inference.lanczos import signs
from gae.inference.laws import codes_from
from gae.training.corruption import GaussianNoise, MaskingNoise, SaltAndPepper
from gae.training.noise import Noise

B, Z = 7, 5
LOC = torch.randn(B, Z, generator=torch.Generator().manual_seed(0))

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {  # rows of LOC to noise for them
    "normal": lambda loc: codes_from(Independent(Normal(loc, 0.5), 1), 6),
    "laplace": lambda loc: codes_from(Independent(Laplace(loc, 0.5), 1), 1),
    "full": lambda loc: codes_from(MultivariateNormal(loc, torch.eye(Z) + 0.5), 6),
    "eight codes of six starts": lambda loc: MultivariateNormal(loc.expand(6, *loc.shape), torch.eye(Z)).rsample((8,)),
    "samples": lambda loc: Normal(loc, 2.0).sample(),
    "bernoulli": lambda loc: Bernoulli(logits=loc).sample(),
    "bernoulli of a number": lambda loc: torch.empty_like(loc).bernoulli_(0.3),
    "bernoulli of rates": lambda loc: torch.empty_like(loc).bernoulli_(loc.sigmoid()),
    "relaxed": lambda loc: RelaxedBernoulli(torch.tensor(0.5), logits=loc).rsample(),
    "cauchy": lambda loc: Cauchy(loc, 1.0).rsample(),
    "exponential": lambda loc: Exponential(loc.exp()).rsample(),
    "uniform": lambda loc: Uniform(loc, loc + 1).rsample(),
    "integers": lambda loc: torch.randint(3, 9, loc.shape),
    "integers by name": lambda loc: torch.randint(high=9, size=loc.shape),
    "signs": lambda loc: signs(8, loc),
    "prior": lambda loc: Normal(torch.zeros(Z), 1.0).sample((len(loc),)),
    "gaussian noise": GaussianNoise(0.3),
    "masking noise": MaskingNoise(0.3),
    "salt and pepper": SaltAndPepper(0.5),
    "one for each": lambda loc: torch.rand(len(loc)),
    "two in turn": lambda loc: torch.randn_like(loc) + torch.rand_like(loc),
}


def noise(rank: int, world: int) -> Noise:
    return Noise(SimpleNamespace(device=torch.device("cpu"), global_rank=rank, world_size=world))


def drawn(draw: Callable[[Tensor], Tensor], rank: int, world: int, loc: Tensor = LOC) -> Tensor:
    """What a process draws for its rows."""
    own, source = slice(rank, None, world), noise(rank, world)
    source.seed(0, "key")
    with source.of_rows(own, len(loc)):
        return draw(loc[own])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", DRAWS)
def test_processes_draw_what_one_draws(name: str, world: int) -> None:
    """For 7 rows, in shares of 4 and 3, or of 3, 2 and 2."""
    alone = drawn(DRAWS[name], 0, 1)
    dim = alone.shape.index(B)
    for rank in range(world):
        mine = alone.movedim(dim, 0)[rank::world].movedim(0, dim)
        torch.testing.assert_close(drawn(DRAWS[name], rank, world), mine, rtol=1e-6, atol=0)


OWN: dict[str, Callable[[Tensor], Tensor]] = {  # draws that are not shared: of 4 rows, by each of two processes
    "images whose height is a share": lambda loc: torch.randn(len(loc), 4, 4),
    "no rows": lambda loc: torch.randn(3),
    "dropout": lambda loc: nn.functional.dropout(torch.ones_like(loc)),
    "by rejection": lambda loc: Gamma(loc.exp(), 1.0).rsample(),
    "by numbers alone": lambda loc: torch.normal(0.0, 1.0, loc.shape),
}


@pytest.mark.parametrize("name", OWN)
def test_other_draws_differ_between_processes(name: str) -> None:
    loc = torch.randn(8, Z)
    one, other = (drawn(OWN[name], rank, 2, loc) for rank in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(one, drawn(OWN[name], 0, 2, loc))


def test_a_generator_of_the_callers_is_left_alone() -> None:
    expected = torch.randn(4, Z, generator=torch.Generator().manual_seed(5))
    got = drawn(lambda loc: torch.randn(4, Z, generator=torch.Generator().manual_seed(5)), 1, 2, torch.zeros(8, Z))
    assert torch.equal(got, expected)
