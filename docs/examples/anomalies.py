"""
Which observations are unlike the rest?
=======================================

A model of ordinary data gives low density to what it has not seen. It is trained here on all digits but the fours,
and three scores rank a test set that contains them: the log density of the observation, the error of its
reconstruction, and the encoder's gap. Which is best depends on the data, so try them on labelled examples.
"""

import matplotlib.pyplot as plt
from sklearn.metrics import roc_auc_score, roc_curve

import gae

digits = gae.data.load("digits")
normal = digits.train[digits.train_labels != 4]
model = gae.vae(digits.event_shape, latent=8)
gae.fit(model, normal, epochs=20, progress=False)

x, four = digits.test[:200], digits.test_labels[:200] == 4
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3))
for by, color in zip(("evidence", "reconstruction", "gap"), ("#0072B2", "#D55E00", "#009E73"), strict=True):
    scores = gae.anomaly_scores(model, x, by=by)
    false, true, _ = roc_curve(four, scores)
    axes[0].plot(false, true, color=color, label=f"{by} {roc_auc_score(four, scores):.2f}")
    if by == "evidence":
        axes[1].hist(
            [scores[~four], scores[four]],
            bins=16,
            density=True,
            histtype="stepfilled",
            alpha=0.8,
            color=["#bbbbbb", "#D55E00"],
        )
axes[0].set(xlabel="false alarms", ylabel="fours that are noticed")
axes[0].legend(title="area under the curve", fontsize=8)
axes[1].set(xlabel="−log p(x) (nats)", yticks=[], title="other digits (grey) and fours")
plt.show()
