"""
Codes for a decoder of your own
===============================

A decoder that was trained elsewhere, by whatever means, becomes a model once its noise and its prior are said. Here
it is half of a plain autoencoder, trained in ten lines of PyTorch without gae. ``gae.from_decoder`` takes it as it
is, with its encoder, and says how far that encoder's codes are from the best ones.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gae
from gae.analysis.engines import engine_of, mode_ascent

digits = gae.data.load("digits")
encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 6))
decoder = nn.Sequential(nn.Linear(6, 128), nn.SiLU(), nn.Linear(128, 64))
optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
for _ in range(300):
    x = digits.train[torch.randint(len(digits.train), (128,))]
    z = encoder(x)
    loss = 0.5 * (x.flatten(1) - decoder(z)).square().sum(1).mean() / 0.15**2 + 0.5 * z.square().sum(1).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

# %%
# The model
# ---------
# The squared error above is that of Gaussian noise with standard deviation 0.15; the penalty on z is that of the
# prior N(0, I).

model = gae.from_decoder(decoder, digits, latent=6, scale=0.15, encoder=encoder)
model.eval()

# %%
# Any engine encodes on it
# ------------------------

x = digits.test[:200]
best = model.encode(x, mode_ascent("lbfgs"))
heights = {"your encoder": model.encode(x), "L-BFGS from 0": best}
heights = {name: model.likelihood.log_joint(x, code.point[None])[0].detach() for name, code in heights.items()}
for steps in (1, 2, 4, 8):
    refined = model.encode(x, engine_of("refine", model, steps=steps))
    heights[f"encoder + {steps}"] = model.likelihood.log_joint(x, refined.point[None])[0].detach()

lost = {name: (heights["L-BFGS from 0"] - value).mean().item() for name, value in heights.items()}
names = ["your encoder", "encoder + 1", "encoder + 2", "encoder + 4", "encoder + 8"]
figure, axis = plt.subplots()
axis.bar(names, [lost[name] for name in names], color="#0072B2")
axis.set_ylabel("nats below the mode, per image")
axis.set_title("A few steps of ascent from the encoder win back most of its loss")
plt.show()
