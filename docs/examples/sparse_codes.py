"""
Sparse codes of a photograph
============================

Under a Laplace prior the best code of a patch is sparse: most of its elements are exactly zero. The decoder is a
dictionary of unit atoms, which turn into edges and gratings as it learns from a photograph. Codes come from an
accelerated proximal ascent (FISTA).
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

import gae

grey = load_sample_image("china.jpg").mean(2)[::2, ::2] / 255.0
patches = torch.tensor(extract_patches_2d(grey, (8, 8), max_patches=2000, random_state=0), dtype=torch.float32)
patches = patches - patches.mean((1, 2), keepdim=True)
data = gae.data.load(patches[:, None])

model = gae.sparse_coding(data, latent=64, rate=12.0, scale=0.15, steps=20)
history = gae.fit(model, data, epochs=8, batch_size=64, optimizer=partial(torch.optim.Adam, lr=0.05), progress=False)

# %%

code = model.encode(data.test)
active = (code.point != 0).float().sum(1)
atoms = model.decode(torch.eye(64)[None]).mean[0, :, 0].detach()
atoms = atoms - model.decode(torch.zeros(1, 1, 64)).mean[0, :, 0].detach()
print(f"{active.mean():.1f} of 64 elements are not zero")

figure, axes = plt.subplots(4, 12, figsize=(6.4, 2.3))
for axis, atom in zip(axes.flat, atoms, strict=False):
    axis.imshow(atom, cmap="gray")
    axis.set(xticks=[], yticks=[])
plt.show()

# %%
# How many atoms a patch needs
# ----------------------------
# Flat patches need none; the more contrast a patch has, the more.

contrast = data.test.flatten(1).std(1)
figure, axis = plt.subplots(figsize=(6.4, 3))
axis.plot(contrast, active, ".", color="#0072B2", ms=4, alpha=0.6)
axis.set(xlabel="standard deviation of the patch", ylabel="atoms used")
plt.show()
