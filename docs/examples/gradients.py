"""
Gradients through an ascent
===========================

If a code comes out of an ascent, the training loss depends on the decoder twice: directly, and by way of the code.
The way back through the solve is a part to swap. ``gae.check_gradient`` compares the gradient of the parameters
with finite differences that repeat the whole inference: some ways are exact, others leave terms out, and how much
that is depends on how far the ascent went.
"""

import warnings

import matplotlib.pyplot as plt

import gae
from gae import Autoencoder
from gae.inference import (
    Ascent,
    CheckpointedUnroll,
    Detach,
    GradientAscent,
    Implicit,
    OneStep,
    Truncate,
    Unroll,
    Zeros,
)

digits = gae.data.load("digits")
likelihood = gae.ppca(digits.event_shape, latent=3).likelihood
x = digits.train[:5]
adjoints = {
    "unrolled": Unroll(),
    "checkpointed": CheckpointedUnroll(),
    "last 4 steps": Truncate(4),
    "one step": OneStep(),
    "implicit": Implicit(),
    "detached": Detach(),
}
steps = (2, 5, 10, 20)
errors = {name: [] for name in adjoints}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an implicit gradient away from a solution warns, as it should
    for name, adjoint in adjoints.items():
        for number in steps:
            engine = Ascent(Zeros(), GradientAscent(0.25), number, adjoint=adjoint)
            errors[name].append(gae.check_gradient(Autoencoder(likelihood, engine), x, directions=2))

# %%
# Far from the solution only the unrolled gradients are right; at the solution of the joint density, all of them.

figure, axis = plt.subplots()
colors = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#000000")
for (name, values), color, dash in zip(errors.items(), colors, ("-", "--", "-", "-", "-", ":"), strict=True):
    axis.plot(steps, values, dash, marker="o", ms=4, color=color, label=name)
axis.set(xlabel="steps of the ascent", ylabel="relative error of the gradient", yscale="log")
axis.legend(fontsize=8, ncols=2)
plt.show()
