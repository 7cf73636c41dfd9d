"""
A first model, encoded in two ways
==================================

A variational autoencoder of the bundled digits is trained once. Its codes are then found by its encoder, in one
pass, and by gradient ascent on the same decoder. The ascent's codes explain every image at least as well: the
difference, in nats, is what the encoder gave up.
"""

import matplotlib.pyplot as plt

import gae
from gae.inference import LBFGS, Ascent

digits = gae.data.load("digits")  # images (N, 1, 8, 8) in [0, 1], split into train and test
model = gae.vae(digits, latent=8)
history = gae.fit(model, digits, epochs=20, progress=False)

# %%
# Two ways to encode
# ------------------
# ``encode`` uses the model's own engine unless it is given another. Both codes are points of the same model, so
# their joint densities can be compared.

x = digits.test[:200]
amortised = model.encode(x)
iterative = model.encode(x, Ascent(model.inference, LBFGS(), max_steps=50, tol=1e-4))
mean, mode = (model.likelihood.log_joint(x, code.point[None])[0] for code in (amortised, iterative))
print(f"ascent gains {(mode - mean).mean():.2f} nats per image; {iterative.solve.summary()}")

# %%
# Which images gain most
# ----------------------
# Above, the images; in the middle, decoded from the encoder's mean; below, from the mode.

worst = (mode - mean).argsort(descending=True)[:8]
rows = [x[worst], *(model.decode(code.point[worst][None]).mean[0] for code in (amortised, iterative))]
figure, axes = plt.subplots(3, 8, figsize=(6.4, 2.6))
for row, images in zip(axes, rows, strict=True):
    for axis, image in zip(row, images, strict=True):
        axis.imshow(image[0].detach(), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
for axis, gain in zip(axes[0], (mode - mean)[worst], strict=True):
    axis.set_title(f"+{gain:.1f}")
for axis, name in zip(axes[:, 0], ("image", "encoder", "ascent"), strict=True):
    axis.set_ylabel(name)
plt.show()
