"""The search for a mode, against scikit-learn's logistic regression and the posterior mean of a linear decoder."""

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from gae.inference import ClosedForm
from gae.inference.modes import mode_search
from gae.inference.starts import Constant
from gae.likelihood import Bernoulli, LinearMixture


def test_it_reaches_the_posterior_mean_from_any_start() -> None:
    model, x = LinearMixture(1, 2, (5,), scale=0.5).double(), torch.randn(4, 5, dtype=torch.float64)
    mean = ClosedForm()(model, x).z
    for start in (None, Constant(torch.randn(4, 2, dtype=torch.float64))):
        torch.testing.assert_close(mode_search(start, grad_tol=1e-9)(model, x).z, mean, atol=1e-8, rtol=0)


def test_it_reaches_the_mode_of_logistic_regression() -> None:
    decoder = nn.Linear(2, 40, bias=False).double()
    x = (torch.rand(1, 40) < 0.5).double()
    regression = LogisticRegression(fit_intercept=False, tol=1e-10)
    oracle = regression.fit(decoder.weight.detach().numpy(), x[0].numpy()).coef_
    z = mode_search()(Bernoulli(decoder, 2), x).z[0]
    torch.testing.assert_close(z, torch.from_numpy(oracle), atol=1e-4, rtol=0)


def test_it_stops_at_its_gradient_norm_and_passes_no_gradient() -> None:
    model, x = LinearMixture(1, 2, (5,)).double(), torch.randn(4, 5, dtype=torch.float64)
    loose, tight = (mode_search(grad_tol=bound)(model, x) for bound in (10.0, 1e-9))
    assert loose.solve is not None and tight.solve is not None
    assert loose.solve.evaluations.sum() < tight.solve.evaluations.sum()
    assert not tight.z.requires_grad


def test_it_starts_where_it_is_told() -> None:
    model, x, z = LinearMixture(1, 2, (5,)), torch.randn(4, 5), torch.randn(4, 2)
    assert bool((mode_search(max_steps=0)(model, x).z == 0).all())
    assert bool((mode_search(Constant(z), max_steps=0)(model, x).z == z).all())
