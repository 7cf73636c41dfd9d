"""Distances and principal components, against differences and scikit-learn."""

import pytest
import torch
from sklearn.decomposition import PCA

from gae.likelihood.geometry import explained, principal_components, squared_distances


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("others", [1, 4])
def test_squared_distances_are_those_of_differences(lead: tuple[int, ...], others: int) -> None:
    """Far from the origin too: the product is taken about a centre."""
    a, b = (1e4 + torch.randn(*lead, n, 6, dtype=torch.float64) for n in (5, others))
    wanted = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    torch.testing.assert_close(squared_distances(a, b), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("points", [20, 3])  # more points than features, and fewer
def test_principal_components_are_those_of_scikit_learn(points: int) -> None:
    x = torch.randn(points, 5, dtype=torch.float64) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]) + 7
    scores, size, directions = principal_components(x)
    oracle = PCA(2).fit(x.numpy())
    signs = (torch.from_numpy(oracle.components_) * directions[:2]).sum(1).sign()
    torch.testing.assert_close(directions[:2], signs[:, None] * torch.from_numpy(oracle.components_))
    torch.testing.assert_close(scores[:, :2], signs * torch.from_numpy(oracle.transform(x.numpy())))
    assert float(explained(size, 2)) == pytest.approx(oracle.explained_variance_ratio_.sum())
    largest = directions[:2].gather(1, directions[:2].abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(principal_components(torch.stack([-x, x]))[2][:, :2], directions[:2].expand(2, 2, 5))
