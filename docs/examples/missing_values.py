"""
Missing values
==============

A third of a table's values is removed at random. A model of the rest needs no imputation first: with
``missing="mask"`` a NaN means *not observed*, and codes and log p(x) are those of the observed part of each row.
For a linear model both are exact. What is missing is then filled in by the decoder, with less than the error of the
column's mean.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

import gae

table = load_breast_cancer()
values = (table.data - table.data.mean(0)) / table.data.std(0)
hidden = np.random.default_rng(0).random(values.shape) < 1 / 3
data = gae.data.load(np.where(hidden, np.nan, values), missing="mask")
truth = gae.data.load(values).test  # the same rows, since the split depends on the seed alone
blank = data.test.isnan()

# %%
# Factors of 30 properties of cells are learnt from the values that are left, and tried on rows that were held out.

print(f"root mean square error of the column's mean: {truth[blank].square().mean().sqrt():.3f}")
for latent in (1, 2, 4, 8):
    model = gae.ppca(data, latent=latent)
    gae.fit(model, data, progress=False)
    filled = model.reconstruct(data.test)
    error = (filled - truth)[blank].square().mean().sqrt()
    log_p = gae.log_evidence(model, data.test).log_p.mean()
    print(f"{latent} factors: error {error:.3f}; log p of the values that were observed {log_p:.2f} nats per row")

# %%
# Filled in against removed, for the last of these models
# -------------------------------------------------------

figure, axis = plt.subplots(figsize=(4.6, 4.4))
axis.plot(truth[blank], filled[blank].detach(), ".", color="#0072B2", ms=4)
axis.axline((0, 0), slope=1, color="#888888", lw=1)
axis.set(xlabel="removed value (standard units)", ylabel="filled in", aspect="equal")
plt.show()
