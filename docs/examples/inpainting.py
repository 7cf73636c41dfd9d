"""
Restore with a trained decoder
==============================

A model of whole images also says how to complete a part of one: the code must explain the pixels that were seen,
and its decoder paints the others. ``Measured`` puts any linear measurement after a decoder; here it is a mask that
hides the lower half, and the posterior of the code shows which completions are possible.
"""

import matplotlib.pyplot as plt
import torch

import gae
from gae.evidence import nuts
from gae.inference import LBFGS, Ascent, Prior
from gae.likelihood import Mask, Measured

digits = gae.data.load("digits")
model = gae.vae(digits, latent=8)
gae.fit(model, digits, epochs=30, progress=False)

seen = torch.ones(1, 8, 8, dtype=torch.bool)
seen[:, 4:] = False
mask = Mask(seen, (1, 8, 8))
measured = Measured(model.likelihood, mask)
x = digits.test[:4]

# %%
# The best completion, and others that are as plausible
# -----------------------------------------------------

best = Ascent(Prior(), LBFGS(), max_steps=100, tol=1e-3, restarts=8)(measured, mask(x))
draws = nuts(measured, mask(x), samples=40, warmup=60).z[[9, 19, 29, 39]]
with torch.no_grad():
    completions = [model.decode(best.point[None]).mean[0], *model.decode(draws).mean]

figure, axes = plt.subplots(4, 7, figsize=(6.4, 3.8))
titles = ["image", "seen", "best", *(f"draw {i}" for i in range(1, 5))]
for row in range(4):
    shown = [x[row, 0], torch.where(seen, x[row], torch.nan)[0], *(images[row, 0] for images in completions)]
    for axis, image, title in zip(axes[row], shown, titles, strict=True):
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], title=title if row == 0 else "")
plt.show()
