"""
From clusters to charts
=======================

k-means, a mixture of Gaussians and local linear charts are one likelihood with different parts: K components, each
with its own plane of E directions. Their codes are a component, and a position on its plane. On a rolled-up sheet,
charts follow the surface that clusters can only cut into pieces.
"""

import matplotlib.pyplot as plt
import torch

import gae

roll = gae.data.load("swiss-roll")
models = {
    "k-means, K = 12": gae.kmeans(roll, components=12),
    "mixture, K = 12": gae.gmm(roll, components=12),
    "charts, K = 12, E = 2": gae.llgae(roll, components=12, latent=2),
}
figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.6))
for axis, (name, model) in zip(axes, models.items(), strict=True):
    gae.fit(model, roll, progress=False)
    code = model.encode(roll.test)
    restored = model.reconstruct(roll.test).detach()
    error = (restored - roll.test).square().sum(1).mean().item()
    component = code.k[code.best, torch.arange(len(roll.test))]
    axis.scatter(roll.test[:, 0], roll.test[:, 2], c=component, cmap="tab20", s=4, alpha=0.35)
    axis.plot(restored[:, 0], restored[:, 2], ".", color="#222222", ms=2)
    axis.set(xticks=[], yticks=[], aspect="equal", title=f"{name}\nerror {error:.2f}")
plt.show()
