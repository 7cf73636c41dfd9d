"""
A posterior, not a point
========================

A code is a random variable: after x is seen, it has a density q(z|x). Five ways to get it on one decoder are
compared by their marginals: the encoder, the best normal density with independent elements, the best with any
covariance, Laplace's method at the mode, and draws of the no-U-turn sampler, which are exact up to noise.
"""

import matplotlib.pyplot as plt
import torch

import gae
from gae.analysis.engines import mode_ascent
from gae.evidence import laplace_approximation, nuts
from gae.inference import LBFGS, Ascent, FullCovariance, MeanField

digits = gae.data.load("digits")
model = gae.vae(digits, latent=2)
gae.fit(model, digits, epochs=20, progress=False)
x = digits.test[3:4]

mode = mode_ascent()(model.likelihood, x)
draws = nuts(model.likelihood, x, samples=300, warmup=100)
densities = {"encoder": model.encode(x).q, "Laplace": laplace_approximation(model.likelihood, x, mode.point)}
for name, family in {"mean-field": MeanField, "full covariance": FullCovariance}.items():
    engine = Ascent(model.inference, LBFGS(), max_steps=60, tol=1e-3, family=family(samples=256))
    densities[name] = engine(model.likelihood, x).q

# %%
# Effective sample size of the chain, of 300 draws: how many independent draws it is worth.

print([round(value) for value in draws.ess[0].tolist()])

# %%
# Marginals of both elements
# --------------------------

figure, axes = plt.subplots(1, 2)
for element, axis in enumerate(axes):
    axis.hist(draws.z[:, 0, element], bins=25, density=True, color="#bbbbbb", label="draws")
    low, high = axis.get_xlim()
    side = torch.linspace(low, high, 200)
    for (name, q), color in zip(densities.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True):
        mean, deviation = (value.detach().reshape(-1)[element] for value in (q.mean, q.variance.sqrt()))
        axis.plot(side, torch.distributions.Normal(mean, deviation).log_prob(side).exp(), color=color, label=name)
    axis.set(xlabel=f"element {element + 1} of z", yticks=[])
axes[0].legend(fontsize=8)
plt.show()
