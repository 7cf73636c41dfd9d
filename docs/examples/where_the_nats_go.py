"""
Where the nats go
=================

The inference gap log p(x) − ELBO of an encoder has two parts. The *approximation gap* is what the best member of
its family loses, whatever the encoder: here, of normal densities with independent elements. The *amortisation gap*
is what the encoder loses against that member. Both are measured for each image, so one can look at those that lose
most.
"""

import matplotlib.pyplot as plt

import gae

digits = gae.data.load("digits")
model = gae.vae(digits, latent=8)
gae.fit(model, digits, epochs=20, progress=False)

x = digits.test[:60]
gap = gae.inference_gap(model, x, samples=1000, draws=400)
for name in ("log p(x)", "L[q]", "approximation gap, mean-field", "amortisation gap", "inference gap"):
    entry = gap.table()[name]
    print(f"{name:30} {entry['mean']:8.2f} ± {entry['se']:.2f}")

# %%
# Image by image
# --------------

approximation, amortisation = gap.approximation("mean-field"), gap.amortisation
order = (approximation + amortisation).argsort(descending=True)
figure, axis = plt.subplots()
axis.bar(range(60), approximation[order], color="#0072B2", label="approximation: the family")
axis.bar(
    range(60), amortisation[order], bottom=approximation[order], color="#D55E00", label="amortisation: the encoder"
)
axis.set(xlabel="test images, by their loss", ylabel="nats lost")
axis.legend()
plt.show()

# %%
# The images that lose most, and their reconstructions.

figure, axes = plt.subplots(2, 8, figsize=(6.4, 1.9))
restored = model.reconstruct(x[order[:8]])
for i, index in enumerate(order[:8].tolist()):
    axes[0, i].imshow(x[index, 0], cmap="gray_r", vmin=0, vmax=1)
    axes[0, i].set_title(f"{approximation[index] + amortisation[index]:.1f}")
    axes[1, i].imshow(restored[i, 0].detach(), cmap="gray_r", vmin=0, vmax=1)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()
