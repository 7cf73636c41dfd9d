"""
Parts of digits
===============

With codes and weights that cannot be negative, a decoder can only add. Images then become sums of parts, strokes in
the case of digits. Codes are found by updates that never lower the joint density (Lee and Seung), an engine like
any other.
"""

import matplotlib.pyplot as plt

import gae

digits = gae.data.load("digits")
model = gae.nmf(digits, latent=16)
gae.fit(model, digits, progress=False)
parts = model.likelihood.parts.detach()[:, 0]

figure, axes = plt.subplots(2, 8, figsize=(6.4, 1.9))
for axis, part in zip(axes.flat, parts, strict=True):
    axis.imshow(part, cmap="gray_r", vmin=0)
    axis.set(xticks=[], yticks=[])
plt.show()

# %%
# One image as a sum
# ------------------

x = digits.test[:1]
z = model.encode(x).point[0].detach()
largest = z.argsort(descending=True)[:5]
figure, axes = plt.subplots(1, 7, figsize=(6.4, 1.3))
shown = [x[0, 0], *(z[i] * parts[i] for i in largest), model.reconstruct(x)[0, 0].detach()]
titles = ["image", *(f"{z[i]:.1f} ×" for i in largest), "their sum"]
for axis, image, title in zip(axes, shown, titles, strict=True):
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[], title=title)
plt.show()
