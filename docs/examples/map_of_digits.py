"""
A map of a data set
===================

Some models explain a whole data set at once: in t-SNE the observation is which points are neighbours, and the codes
are positions on a map. Encoding is inference here, too: an ascent by all codes together. The same digits are shown
by the codes of PCA and of a variational autoencoder with two elements.
"""

import matplotlib.pyplot as plt

import gae

digits = gae.data.load("digits")
x, labels = digits.train[:300], digits.train_labels[:300]

maps = {}
for name, build in {"PCA": gae.pca, "VAE": gae.vae}.items():
    model = build(digits, latent=2)
    gae.fit(model, digits, progress=False)
    maps[name] = model.encode(x).point.detach()

neighbours = gae.tsne(digits.event_shape, points=len(x), steps=300, early_steps=100)
maps["t-SNE"] = neighbours.encode(x[None]).z[0, 0].detach()

# %%

figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.5))
for axis, (name, z) in zip(axes, maps.items(), strict=True):
    axis.scatter(*z.T, c=labels, cmap="tab10", s=5)
    axis.set(xticks=[], yticks=[], title=name)
plt.show()
