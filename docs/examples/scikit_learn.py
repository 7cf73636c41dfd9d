"""
In a pipeline of scikit-learn
=============================

Every system that encodes samples is an estimator: it standardises, transforms, scores and searches like any other.
Here the size of a probabilistic PCA is chosen by the held-out log p(x) that its ``score`` returns, and its codes
feed a classifier.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gae.sklearn import GenerativeAutoencoder

X, y = load_breast_cancer(return_X_y=True)
sizes = [1, 2, 4, 8, 16, 24]
density = make_pipeline(StandardScaler(), GenerativeAutoencoder("ppca"))
search = GridSearchCV(density, {"generativeautoencoder__latent": sizes}, cv=3).fit(X)
print(search.best_params_)

# %%
# The size that is best for the density need not be that for a task, so both are shown.

accuracy = [
    cross_val_score(
        make_pipeline(StandardScaler(), GenerativeAutoencoder("ppca", latent=size), LogisticRegression(max_iter=1000)),
        *(X, y),
        cv=3,
    ).mean()
    for size in sizes
]
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8))
axes[0].errorbar(
    sizes, search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"], fmt="o-", color="#0072B2"
)
axes[0].set(xlabel="elements of the code", ylabel="held-out log p(x) per row (nats)")
axes[1].plot(sizes, accuracy, "o-", color="#D55E00")
axes[1].set(xlabel="elements of the code", ylabel="accuracy of a classifier of codes")
plt.show()
