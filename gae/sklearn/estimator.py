"""The estimator: parameters, training, and codes."""

import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor
from torch.nn.functional import one_hot

from gae.analysis.engines import ASCENTS, engine_of
from gae.autoencoder import Autoencoder
from gae.data.loading import MISSING
from gae.inference import Encoding, Inference, Status
from gae.sklearn.base import FLOATS, array, drawn, seeded
from gae.sklearn.components import Components
from gae.sklearn.density import Density
from gae.systems import SYSTEMS, build, named
from gae.systems.table import function_name
from gae.training import fit
from gae.training.history import History

NESTED = "options__"


class GenerativeAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Density, Components):
    """A named system of gae as a transformer and density estimator of scikit-learn.

    ``fit`` trains the decoder, ``transform`` infers codes by any engine on it, ``inverse_transform`` decodes them, and
    ``score_samples`` is log p(x). Rows of X are observations (D,), and the model computes in the dtype of X, float64 or
    float32: single precision trains networks faster. Standardise columns with different units in a pipeline.

    The code of a mixture (k-means, GMM, LLGAE, nearest neighbours) is its component and, with charts, the coordinates
    on it: ``transform`` returns indicators of the component, then the coordinates, and ``predict`` the component.

    Args:
        system: a name from ``gae systems``, of those that observe samples.
        engine: the engine of ``transform``, a name (``gae.analysis.engines.engine_of``) or an ``Inference``; by default
            that of the system. The decoder and its training do not depend on it.
        latent: elements of a code, or width of a chart; the system's default if None.
        components: components of a mixture; the system's default if None (for ``"knn"``, the number of rows).
        options: further options of the system, by name. Search over one of them as ``options__NAME``.
        missing: ``"refuse"`` raises an error for NaN in X; ``"mask"``: NaN marks elements that were not observed, and
            codes and log p(x) are those of the others. ``inverse_transform(transform(X))`` then estimates them all.
        epochs, batch_size, validation, patience, tol: as in ``gae.fit``.
        lr: learning rate of Adam, which replaces closed-form learning; by default as in ``gae.fit``.
        importance_samples: draws per row for log p(x), where it has no closed form.
        random_state: seed of initial weights, order of the data, and noise.

    Attributes:
        model_: the fitted ``Autoencoder``, in evaluation mode; ``model_.save(folder)`` keeps it.
        history_: the ``History`` of its training.
        n_iter_: epochs trained.
        n_features_in_: D.
        feature_names_in_: names of the columns of X, if all of them are strings.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> X, y = load_digits(return_X_y=True)
    >>> search = GridSearchCV(GenerativeAutoencoder("ppca"), {"latent": [2, 8, 32]}, cv=3)
    >>> search.fit(X / 16).best_params_
    {'latent': 32}
    >>> pipeline = make_pipeline(search.best_estimator_, LogisticRegression(max_iter=1000))
    >>> bool(pipeline.fit(X / 16, y).score(X / 16, y) > 0.9)
    True
    """

    def __init__(
        self,
        system: str = "vae",
        engine: str | Inference | None = None,
        *,
        latent: int | None = None,
        components: int | None = None,
        options: Mapping[str, Any] | None = None,
        missing: str = "refuse",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        validation: float | None = None,
        patience: int | None = None,
        tol: float | None = None,
        importance_samples: int = 500,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.system = system
        self.engine = engine
        self.latent = latent
        self.components = components
        self.options = options
        self.missing = missing
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation = validation
        self.patience = patience
        self.tol = tol
        self.importance_samples = importance_samples
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters; with ``deep``, also each of ``options`` as ``options__NAME``."""
        nested = self.options if deep and isinstance(self.options, Mapping) else {}
        return {**super().get_params(deep), **{f"{NESTED}{name}": value for name, value in nested.items()}}

    def set_params(self, **params: Any) -> "GenerativeAutoencoder":
        """Sets parameters; ``options__NAME`` sets one of ``options``, in a new mapping."""
        nested = {name.removeprefix(NESTED): value for name, value in params.items() if name.startswith(NESTED)}
        super().set_params(**{name: value for name, value in params.items() if not name.startswith(NESTED)})
        if nested:
            self.options = {**(self.options or {}), **nested}
        return self

    def fit(self, X: Any, y: Any = None) -> "GenerativeAutoencoder":
        """Trains the system on X (N, D); y is ignored.

        Raises:
            ValueError: for an unknown system, engine or option, or data that the system does not accept.
            FloatingPointError: when the loss or a parameter becomes NaN or infinite.
        """
        if self.missing not in MISSING:
            raise ValueError(f"Unknown missing {self.missing!r}. Choose one of {', '.join(MISSING)}.")
        x = torch.tensor(self._validated(X, reset=True, ensure_min_samples=2))
        self._seed = drawn(self.random_state)
        with seeded(self._seed):
            try:
                self.model_, self.history_ = self._trained(x)
            except ValueError as error:
                raise ValueError(f"{error} (n_samples={len(x)}, n_features={x.shape[1]})") from error
        self.n_iter_ = len(self.history_.rows)
        self._n_features_out = sum(self._widths)
        return self

    def _trained(self, x: Tensor) -> tuple[Autoencoder, History]:
        model = build(self.system, (x.shape[1],), **self._options(len(x))).to(x.dtype)
        self._engine(model)  # raises for an engine that does not suit
        optimizer = None if self.lr is None else partial(torch.optim.Adam, lr=self.lr)
        history = fit(
            *(model, x),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=optimizer,
            validation=self.validation,
            patience=self.patience,
            tol=self.tol,
            seed=self._seed,
            progress=False,
        )
        return model.eval(), history

    def _options(self, n_samples: int) -> dict[str, Any]:
        row = named(self.system)
        if row.observation != "sample":
            tables = ", ".join(name for name, other in SYSTEMS.items() if other.observation == "sample")
            raise ValueError(f"An observation of {self.system} is a {row.observation}, not a row of X. Use {tables}.")
        if "missing" in (self.options or {}):
            raise ValueError("missing is no option here. Give it as a parameter: missing='mask'.")
        masked = True if self.missing == "mask" else None
        if masked and "missing" not in row.reads:
            takers = ", ".join(name for name, other in SYSTEMS.items() if "missing" in other.reads)
            raise ValueError(f"{self.system} needs complete observations. Use missing='refuse', or one of {takers}.")
        given = {"latent": self.latent, "components": self.components, "missing": masked}
        chosen = {name: value for name, value in given.items() if value is not None}
        twice = sorted(chosen.keys() & (self.options or {}).keys())
        if twice:
            raise ValueError(f"{twice[0]} is given twice, as a parameter and in options. Give it once.")
        counted = {option: n_samples for option, fact in row.reads.items() if fact == "observations"}
        return {**counted, **chosen, **(self.options or {})}

    def _engine(self, model: Autoencoder) -> Inference | None:
        if isinstance(self.engine, str):
            return engine_of(self.engine, model)
        return self.engine

    def transform(self, X: Any) -> np.ndarray:
        """The codes of X (N, D), (N, K + Z): of a mixture, K indicators of the component; then Z elements of z.

        An engine that draws random numbers draws the same ones at each call.

        Warns:
            ConvergenceWarning: if some ascents failed or, by an ``engine`` that climbs from 0, have not converged.
        """
        X = self._checked(X)
        engine = self._engine(self.model_)
        with torch.no_grad(), seeded(self._seed):
            encodings = [self.model_.encode(batch, engine) for batch in self._batches(X)]
            _warn_of_unfinished(self.engine, encodings)
            return array(torch.cat([self._code(encoding) for encoding in encodings]), X)

    def _code(self, encoding: Encoding) -> Tensor:
        z, k, components = encoding.point.flatten(1), encoding.component, self._widths[0]
        if not components:
            return z
        if k is None:
            raise ValueError(f"`{encoding.engine}` returns no component of this mixture. Wrap it: `Argmax(engine)`.")
        return torch.cat([one_hot(k, components).to(z), z], 1)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The decoder's point estimates (N, D) at codes (N, K + Z), as returned by ``transform``.

        The component of a mixture is that of the largest indicator.
        """
        check_is_fitted(self)
        X = check_array(X, dtype=FLOATS, input_name="X")
        components, width = self._widths
        if X.shape[1] != components + width:
            raise ValueError(f"Codes have {components + width} columns, got {X.shape[1]}. Give those of `transform`.")
        likelihood, parts = self.model_.likelihood, []
        with torch.no_grad():
            for batch in self._batches(X):
                k = batch[:, :components].argmax(1) if components else None
                z = batch[:, components:].unflatten(1, likelihood.latent_shape) if width else batch[:, components:]
                parts.append(likelihood.point(self.model_.decode(z, k)).flatten(1))
        return array(torch.cat(parts), X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of ``transform``: SYSTEM_k0, ... for components, then SYSTEM_z0, ... for z."""
        super().get_feature_names_out(input_features)  # raises for other features than those of X
        components, width = self._widths
        columns = [*(f"k{i}" for i in range(components)), *(f"z{i}" for i in range(width))]
        return np.array([f"{function_name(self.system)}_{column}" for column in columns], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.system == "nmf"
        tags.input_tags.allow_nan = self.missing == "mask"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:  # of scikit-learn before 1.6
        return {"requires_positive_X": self.system == "nmf", "preserves_dtype": FLOATS}


def _warn_of_unfinished(engine: str | Inference | None, encodings: list[Encoding]) -> None:
    """Warns of ascents that failed; those by name from 0 also have to converge, since their length is not chosen."""
    statuses = [encoding.solve.status.flatten() for encoding in encodings if encoding.solve is not None]
    fine = (
        (Status.converged,) if isinstance(engine, str) and engine in ASCENTS else (Status.converged, Status.max_steps)
    )
    counts = Counter(Status(status) for status in torch.cat(statuses).tolist()) if statuses else Counter[Status]()
    unfinished = {status.name: count for status, count in counts.items() if status not in fine}
    if unfinished:
        warnings.warn(
            f"{sum(unfinished.values())} of {counts.total()} ascents have not converged ({unfinished}). Use "
            "engine='lbfgs', or an `Ascent` with more steps or a smaller rate.",
            ConvergenceWarning,
            stacklevel=3,
        )
