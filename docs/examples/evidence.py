"""
How well is log p(x) known?
===========================

Every estimate of log p(x) comes with its error, its cost, and a sign of whether to believe it. On probabilistic PCA
the truth has a closed form, so that estimators can be seen to be right or wrong: importance sampling from the prior
fails as the code grows, from a Laplace approximation it is exact, and annealing lies between for the widest code.
"""

import warnings

import matplotlib.pyplot as plt

import gae
from gae.evidence import UnreliableWarning, ais, exact, importance, laplace_approximation

digits = gae.data.load("digits")
errors = {"importance, from the prior": [], "annealed importance": [], "importance, from Laplace": []}
sizes = (1, 2, 4, 8)
x = digits.test[:30]
for size in sizes:
    model = gae.ppca(digits, latent=size)
    gae.fit(model, digits, progress=False)
    likelihood = model.likelihood
    truth = exact(likelihood, x).log_p
    proposal = laplace_approximation(likelihood, x, model.encode(x).point)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)  # this is what we want to see
        estimates = [
            importance(likelihood, x, likelihood.prior.expand((len(x),)), samples=500),
            ais(likelihood, x, temperatures=40, chains=8, leapfrog=4),
            importance(likelihood, x, proposal, samples=500),
        ]
    for name, estimate in zip(errors, estimates, strict=True):
        errors[name].append((truth - estimate.log_p).mean().item())
        print(f"code of {size}, {name:27} {errors[name][-1]:8.3f} nats too low; ESS {estimate.ess.median():.0f}")

# %%
# Importance sampling by few weights is a lower bound on average: its error is what it misses.

figure, axis = plt.subplots()
for (name, values), color in zip(errors.items(), ("#D55E00", "#E69F00", "#0072B2"), strict=True):
    axis.plot(sizes, values, "o-", color=color, label=name)
axis.set(xlabel="elements of the code", ylabel="nats below the true log p(x)", xscale="log", xticks=sizes)
axis.set_xticklabels(map(str, sizes))
axis.minorticks_off()
axis.set_yscale("symlog", linthresh=0.1)
axis.margins(y=0.1)
axis.legend()
plt.show()
