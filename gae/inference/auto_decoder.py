"""Auto-decoder: one code per training observation, learned with the decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int, Num
from torch import Size, Tensor, nn

from gae.inference.base import Code, Inference
from gae.likelihood import Likelihood
from gae.nets import as_size


class AutoDecoder(Inference):
    """Auto-decoder: one learned code per training observation; ``inner`` encodes new data.

    The auto-decoder of DeepSDF (Park et al. 2019, section 4) and GLO (Bojanowski et al. 2018): no encoder. Row i of
    ``codes`` belongs to training observation i, and equal observations have separate codes. In training mode the
    training loop sets the rows of each batch (``training_rows``). In evaluation mode ``inner`` computes every code,
    those of training observations included, so that training and held-out data are encoded alike.

    Args:
        latent_shape: Z, or an int for vectors.
        inner: the engine for new data, such as ``Ascent``; its parameters are not trained.

    Raises:
        ValueError: in training mode, outside ``training_rows`` or for rows without a code; for a likelihood with codes
            of another shape.

    >>> from gae.inference import Ascent
    >>> from gae.likelihood import Gaussian
    >>> model, engine, x = Gaussian(nn.Linear(2, 3), 2), AutoDecoder(2, Ascent()), torch.randn(4, 3)
    >>> engine.initialize(model, x, seed=0)
    >>> rows = torch.tensor([1, 1, 3])
    >>> with training_rows(engine, rows):
    ...     encoding = engine(model, x[rows])
    >>> bool((encoding.z[0] == engine.codes[rows]).all())
    True
    """

    sized_by_data = ("codes",)  # its first dimension depends on the data; see ``gae.storage.checkpoint.restore``
    codes: nn.Parameter
    rows: Tensor | None = None  # of the batch in training

    def __init__(self, latent_shape: int | tuple[int, ...] | Size, inner: Inference):
        super().__init__()
        shape = as_size(latent_shape)
        self.codes = nn.Parameter(torch.zeros(0, *shape))
        self.inner = inner

    @torch.no_grad()
    def initialize(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Draws a code from ``likelihood.initial`` for each row of x, unless there are as many codes already.

        A second ``fit`` to the same rows thus continues from their codes; one to fewer or more rows starts anew.

        Raises:
            ValueError: for a likelihood whose codes have another shape.
            NotImplementedError: under a flat prior, which cannot be sampled.
        """
        if likelihood.latent_shape != self.codes.shape[1:]:
            raise ValueError(
                f"`AutoDecoder` was built for codes of shape {tuple(self.codes.shape[1:])}, but those of "
                f"{type(likelihood).__name__} have {tuple(likelihood.latent_shape)}."
            )
        if len(x) == len(self.codes):
            return
        devices = [] if x.device.type == "cpu" else [x.device]
        with torch.random.fork_rng(devices, device_type=x.device.type):
            torch.manual_seed(seed)
            self.codes.data = likelihood.initial(len(x)).to(self.codes)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not self.training:
            return self.inner.infer(likelihood, x, k)
        code = Code(self.codes[self._rows_of(x).to(self.codes.device)].unsqueeze(0))
        return code if k is None else code.expand_components(k)

    def _rows_of(self, x: Tensor) -> Tensor:
        if self.rows is None:
            raise ValueError(
                "`AutoDecoder` in training mode needs the indices of the training rows, and got none. To encode "
                "observations, call `.eval()` on the autoencoder; in a custom training loop, call the autoencoder "
                "inside `gae.inference.auto_decoder.training_rows(autoencoder, rows)`, as `fit` does."
            )
        if len(self.rows) != len(x):
            raise ValueError(f"`AutoDecoder` got {len(x)} observations, but `training_rows` names {len(self.rows)}.")
        if not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.codes):
            raise ValueError(
                f"`AutoDecoder` has codes for the rows 0 ... {len(self.codes) - 1}, but `training_rows` names "
                f"{int(self.rows.min())} ... {int(self.rows.max())}. Call `initialize` with all training "
                "observations first, as `fit` does."
            )
        return self.rows

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        codes = state_dict.get(prefix + "codes")
        if codes is not None and codes.shape[1:] == self.codes.shape[1:]:
            self.codes.data = self.codes.new_empty(codes.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@contextmanager
def training_rows(module: nn.Module, rows: Int[Tensor, " B"]) -> Iterator[None]:
    """Sets the training rows of a batch for every ``AutoDecoder`` in a module.

    Args:
        module: an autoencoder, an engine, or a wrapper of either.
        rows: indices of the batch among the training observations, in its order.
    """
    parts = [part for part in module.modules() if isinstance(part, AutoDecoder)]
    before = [part.rows for part in parts]
    for part in parts:
        part.rows = rows
    try:
        yield
    finally:
        for part, earlier in zip(parts, before, strict=True):
            part.rows = earlier
