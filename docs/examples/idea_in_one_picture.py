"""
The idea in one picture
=======================

A decoder and a prior define the joint density of a code z and an observation x. For one image, and a code of two
elements, that density is a landscape over the plane of codes. Encoding is the search for its top, or for its shape:
this picture shows the landscape, the encoder's guess, the path of an ascent, and the normal density that Laplace's
method puts at the mode.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Ellipse

import gae
from gae.analysis.engines import mode_ascent
from gae.evidence import laplace_approximation
from gae.inference import Adam, Ascent, Constant

digits = gae.data.load("digits")
model = gae.vae(digits, latent=2)
gae.fit(model, digits, epochs=30, progress=False)
x = digits.test[7:8]

# %%
# The landscape
# -------------
# ``log_joint`` is log q(x|z) + log q(z) in nats, with every constant, so a sum over the grid is log p(x) by
# quadrature.

side = torch.linspace(-3.5, 3.5, 141)
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 1, 2)
with torch.no_grad():
    height = model.likelihood.log_joint(x, grid)[:, 0]
log_p = height.logsumexp(0) + 2 * (side[1] - side[0]).log()
posterior = (height - log_p).exp().reshape(141, 141)
print(f"log p(x) = {log_p:.2f} nats by quadrature")

# %%
# Three ways to encode
# --------------------

encoder = model.encode(x)
path = [torch.zeros(1, 1, 2)]
for _ in range(60):  # one step at a time, to keep the path
    path.append(Ascent(Constant(path[-1][0, 0]), Adam(0.1), max_steps=1)(model.likelihood, x).z.detach())
mode = mode_ascent()(model.likelihood, x)
laplace = laplace_approximation(model.likelihood, x, mode.point)


def ellipse(mean, covariance, **style):
    """Two standard deviations of a normal density."""
    size, axes = torch.linalg.eigh(covariance.detach())
    angle = torch.rad2deg(torch.atan2(axes[1, 1], axes[0, 1])).item()
    return Ellipse(mean.detach(), *(4 * size.sqrt().flip(0)).tolist(), angle=angle, fill=False, lw=2, **style)


figure, axis = plt.subplots(figsize=(6.4, 5))
landscape = (height - height.max()).reshape(141, 141).clamp_min(-60)
shade = axis.contourf(side, side, landscape, levels=20, cmap="Greys")
axis.contour(side, side, posterior, levels=[posterior.max() * level for level in (0.05, 0.3, 0.8)], colors="#009E73")
steps = torch.cat(path).squeeze(1)
axis.plot(*steps.T, "-o", color="#D55E00", ms=3, lw=1, label="ascent from 0")
mean, deviation = encoder.q.mean[0], encoder.q.stddev[0]
mean, deviation = mean.reshape(-1), deviation.reshape(-1)
axis.add_patch(ellipse(mean, deviation.square().diag(), color="#0072B2", ls="--", label="encoder's density"))
axis.add_patch(ellipse(mode.point[0], laplace.covariance_matrix[0], color="#CC79A7", label="Laplace at the mode"))
axis.plot([], [], color="#009E73", label="posterior (quadrature)")
axis.set(xlabel="first element of z", ylabel="second element of z", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
axis.grid(False)
axis.legend(loc="lower left", fontsize=8, frameon=True)
figure.colorbar(shade, label="log joint density below its top (nats)")
plt.show()
