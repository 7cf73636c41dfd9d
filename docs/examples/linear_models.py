"""
Linear models are exact
=======================

With a linear decoder and Gaussian noise, encoding has a closed form, log p(x) is known, and learning is an
eigenvalue problem: no optimiser, no bound. That makes probabilistic PCA the baseline of every comparison, and
choosing the size of its code by held-out log p(x) is one loop.
"""

import matplotlib.pyplot as plt

import gae

truth = gae.data.linear_gaussian(400, latent=4, dim=20, scale=0.5)
data = truth.dataset  # 20 numbers, of 4 factors and noise
sizes = range(1, 11)
curves = {"training data": [], "test data": []}
for size in sizes:
    model = gae.ppca(data, latent=size)
    gae.fit(model, data, progress=False)
    for name, x in zip(curves, (data.train, data.test), strict=True):
        curves[name].append(model.log_evidence(x).log_p.mean().item())

best = sizes[curves["test data"].index(max(curves["test data"]))]
print(f"best size: {best}, with {max(curves['test data']):.2f} nats per observation")

# %%

figure, axis = plt.subplots()
for (name, values), color in zip(curves.items(), ("#888888", "#0072B2"), strict=True):
    axis.plot(sizes, values, "o-", color=color, label=name)
axis.set(xlabel="elements of the code", ylabel="log p(x) per observation (nats)")
axis.legend()
plt.show()

# %%
# The principal directions of digits
# ----------------------------------

digits = gae.data.load("digits")
model = gae.ppca(digits, latent=8)
gae.fit(model, digits, progress=False)
directions = model.likelihood.loadings.detach().reshape(8, 8, 8)
figure, axes = plt.subplots(1, 8, figsize=(6.4, 1.1))
for axis, direction in zip(axes, directions, strict=True):
    axis.imshow(direction, cmap="RdBu", vmin=-direction.abs().max(), vmax=direction.abs().max())
    axis.set(xticks=[], yticks=[])
plt.show()
