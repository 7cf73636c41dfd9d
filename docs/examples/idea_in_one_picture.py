"""
The idea in one picture
=======================

A decoder and a prior define the joint density of a code z and an observation x. For one image, and a code of two
elements, that density is a landscape over the plane of codes. Encoding is the search for its top, or for its shape.
The picture shows the landscape, an ascent from the encoder's guess, and the posterior beside two normal densities that
stand in for it.
"""

from textwrap import fill

import matplotlib.pyplot as plt

import gae
from gae.analysis.landscape import landscape
from gae.reports.landscape import draw_ascent, draw_posterior, sentence

digits = gae.data.load("digits")
model = gae.vae(digits, latent=2)
gae.fit(model, digits, epochs=30, progress=False)

# %%
# The numbers
# -----------
# ``landscape`` follows an ascent from the encoder's mean, finds the modes, and integrates the joint density by
# quadrature: for a code of two elements log p(x) is known, so that every approximation has an exact error.

seen = landscape(model.double(), digits.test[7:8].double())
print(fill(sentence(seen), 80))

# %%
# The picture
# -----------
# On the left log q(x, z) with the ascent, on the right the part where the posterior lies. ``gae picture CHECKPOINT
# DATA --index 7`` draws both in one figure, for any model.

for draw in (draw_ascent, draw_posterior):
    figure, axes = plt.subplots(figsize=(5.0, 5.4))
    handles = draw(axes, seen)
    figure.legend(handles=handles, loc="outside lower center", fontsize=9)
plt.show()

# %%
# From another start
# ------------------
# The ascent needs no encoder: Gauss–Newton from 0 reaches the same mode.

print(fill(sentence(landscape(model, digits.test[7:8].double(), "gauss-newton")), 80))
