"""Free codes: one parameter per training observation (auto-decoder)."""

from typing import Any

import torch
from jaxtyping import Int, Num
from torch import Size, Tensor, nn

from gae.inference.base import Code, Inference
from gae.likelihood import Likelihood

STRIDE = -7046029254386353131  # 2⁶⁴ / golden ratio, odd: consecutive multiples are far apart (SplitMix64)
ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1))  # shift, then multiply (SplitMix64)


class AutoDecoder(Inference):
    """A code of its own for each training observation, learned with the decoder; new data are encoded by ``inner``.

    The auto-decoder of DeepSDF (Park et al. 2019, section 4) and GLO (Bojanowski et al. 2018): no encoder. In training
    mode a code is looked up by the content of its row; equal observations share one. In evaluation mode every code,
    also that of a training observation, comes from ``inner``, so that training and held-out data are encoded alike.

    ``fit`` calls ``initialize``, which makes the codes. A row is known by a 64-bit hash of its values: two of N
    different rows share one by mistake with a probability of about N² / 2⁶⁵, 10⁻¹⁰ for N = 60,000.

    Args:
        latent_shape: Z, or an int for vectors.
        inner: the engine for new data, such as ``Ascent``; where it learns, it is not trained.

    Raises:
        ValueError: in training mode, for rows that ``initialize`` has not seen; for a likelihood with other codes.

    >>> from gae.inference import Ascent
    >>> from gae.likelihood import Gaussian
    >>> model, engine, x = Gaussian(nn.Linear(2, 3), 2), AutoDecoder(2, Ascent()), torch.randn(4, 3)
    >>> engine.initialize(model, x, seed=0)
    >>> bool((engine(model, x[[1, 1, 3]]).z[0] == engine.codes[engine.find(x[[1, 1, 3]])]).all())
    True
    """

    sized_by_data = (
        "codes",
        "keys",
    )  # their first dimension is known from data alone; see ``gae.storage.checkpoint.restore``
    codes: nn.Parameter
    keys: Tensor

    def __init__(self, latent_shape: int | tuple[int, ...] | Size, inner: Inference):
        super().__init__()
        shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
        self.codes = nn.Parameter(torch.zeros(0, *shape))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.long))
        self.inner = inner

    @torch.no_grad()
    def initialize(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Codes for all rows of x: those already known keep theirs, new ones start from ``likelihood.initial``.

        Raises:
            ValueError: for a likelihood whose codes have another shape.
            NotImplementedError: under a flat prior, which has no draws to start from.
        """
        if likelihood.latent_shape != self.codes.shape[1:]:
            raise ValueError(
                f"`AutoDecoder` was built for codes of shape {tuple(self.codes.shape[1:])}, but those of "
                f"{type(likelihood).__name__} have {tuple(likelihood.latent_shape)}."
            )
        keys = row_keys(x).unique()
        new = keys[~torch.isin(keys, self.keys)]
        if not len(new):
            return
        devices = [] if x.device.type == "cpu" else [x.device]
        with torch.random.fork_rng(devices, device_type=x.device.type):
            torch.manual_seed(seed)
            drawn = likelihood.initial(len(new)).to(self.codes)
        merged, order = torch.cat([self.keys, new]).sort()
        self._take(torch.cat([self.codes, drawn])[order], merged)

    def find(self, x: Num[Tensor, "B *X"]) -> Int[Tensor, " B"]:
        """The index of each row's code; -1 for rows that are not known."""
        keys = row_keys(x)
        if not len(self.keys):
            return torch.full_like(keys, -1)
        index = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[index] == keys, index, -1)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not self.training:
            return self.inner.infer(likelihood, x, k)
        index = self.find(x)
        unknown = index < 0
        if bool(unknown.any()):
            raise ValueError(
                f"`AutoDecoder` in training mode has no code for {int(unknown.sum())} of {len(x)} rows, the first at "
                f"index {int(unknown.nonzero()[0])}. To encode new data, call `.eval()` on the autoencoder; to train "
                "on other data, call `initialize` with them, as `fit` does. Data that are drawn anew in each epoch "
                '(binarize="dynamic") have no free codes.'
            )
        code = Code(self.codes[index].unsqueeze(0))
        return code if k is None else code.expand_components(k)

    def _take(self, codes: Tensor, keys: Tensor) -> None:
        """Codes of another number, in the same parameter."""
        self.codes.data, self.keys = codes, keys

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        codes, keys = (state_dict.get(prefix + name) for name in self.sized_by_data)
        if codes is not None and keys is not None and codes.shape[1:] == self.codes.shape[1:]:
            self._take(self.codes.new_empty(codes.shape), self.keys.new_empty(keys.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def row_keys(x: Num[Tensor, "B *X"]) -> Int[Tensor, " B"]:
    """A 64-bit hash of each row: a sum of SplitMix64 (Steele et al. 2014) over values and their places.

    Equal values have equal keys in float32 and float64, on every device, whatever else is in the batch.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0]])
    >>> keys = row_keys(x)
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    bits = (x.detach().flatten(1).double() + 0.0).contiguous().view(torch.long)  # + 0 makes -0 a 0
    place = torch.arange(1, bits.shape[1] + 1, device=x.device) * STRIDE
    return _mixed(_mixed(bits) + place).sum(1)


def _mixed(bits: Tensor) -> Tensor:
    """A permutation of the 64-bit numbers in which every bit depends on all others."""
    for shift, factor in ROUNDS:
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return bits
