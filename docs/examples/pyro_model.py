"""
A Pyro model and its guide
==========================

``gae.from_pyro`` takes a model and a guide that were written for Pyro's SVI, and trained by it, as they are. What
the guide costs is then one call, and any other engine can encode on the same model.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn

import gae

digits = gae.data.load("digits")
decoder = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)))
encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("images", len(x)):
        code = pyro.sample("code", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("pixels", dist.Normal(decoder(code), 0.2).to_event(3), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    mean, log_scale = encoder(x).chunk(2, -1)
    with pyro.plate("images", len(x)):
        pyro.sample("code", dist.Normal(mean, log_scale.exp()).to_event(1))


pyro.clear_param_store()
svi = SVI(model, guide, Adam({"lr": 3e-3}), Trace_ELBO())
losses = []
for _ in range(600):
    batch = digits.train[torch.randint(len(digits.train), (128,))]
    losses.append(svi.step(batch) / len(batch))

# %%
# What the guide costs, image by image
# ------------------------------------

autoencoder = gae.from_pyro(model, guide, digits)
gap = gae.inference_gap(autoencoder, digits.test[:40], samples=1000, draws=400)
lost = (gap.evidence.log_p - gap.encoder.value).detach()
print(f"log p(x) − ELBO: {lost.mean():.2f} nats, of which {gap.amortisation.mean():.2f} to amortisation")

figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8))
axes[0].plot(losses, color="#0072B2", lw=1)
axes[0].set(xlabel="step of SVI", ylabel="−ELBO per image (nats)", ylim=(None, losses[20]))
axes[1].hist([gap.approximation("mean-field"), gap.amortisation], bins=12, color=["#0072B2", "#D55E00"], stacked=False)
axes[1].set(xlabel="nats", ylabel="images", title="approximation (blue), amortisation")
plt.show()
