"""
Restore a photograph without training data
==========================================

An untrained convolutional network is a decoder whose code is its weights. Fitted to one noisy photograph, it
reproduces the scene before the noise; stopped then, by a rule that looks at its outputs alone, it has removed noise
without ever having seen another image (the deep image prior). ``gae dip photo.jpg`` does this with larger networks
and thousands of steps, until that rule stops it; here a small network takes 300.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

from gae.analysis.image_quality import psnr
from gae.analysis.restoration import restore_image
from gae.systems.image_prior import Network

photograph = torch.tensor(load_sample_image("flower.jpg")[100:356:4, 200:456:4] / 255.0, dtype=torch.float32)
clean = photograph.permute(2, 0, 1)
noisy = (clean + 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

curve = []


def watch(progress):
    """PSNR of the running average, every 20 steps; the restoration does not see the clean image."""
    if progress.step % 20 == 0:
        curve.append((progress.step, psnr(progress.reconstruction[0, 0], clean)))


restored = restore_image(noisy, "denoise", steps=300, network=Network(channels=16, scales=3), watch=watch)

# %%

figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.5))
for axis, image, name in zip(axes, (clean, noisy, restored.image), ("clean", "noisy", "restored"), strict=True):
    axis.imshow(image.permute(1, 2, 0))
    axis.set(xticks=[], yticks=[], title=f"{name}, {psnr(image, clean):.1f} dB" if name != "clean" else name)
plt.show()

# %%
# The curve
# ---------

figure, axis = plt.subplots(figsize=(6.4, 2.6))
axis.plot(*zip(*curve, strict=True), "o-", color="#0072B2", label="running average")
axis.axhline(psnr(noisy, clean), color="#888888", lw=1, label="noisy photograph")
axis.set(xlabel="step", ylabel="PSNR (dB)")
axis.legend()
plt.show()
