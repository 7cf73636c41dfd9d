"""The model without a code, the baseline of every bound."""

from copy import deepcopy

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.likelihood import Head, Likelihood
from gae.likelihood.door import door
from gae.nets import Rescaled

ITERATIONS = 200  # of the fit of the constant output


def without_code(
    likelihood: Likelihood, train: Num[Tensor, "M *X"], x: Num[Tensor, "N *X"], batch_size: int = 1000
) -> Float[Tensor, " N"]:
    """log p(x) of the model without a code: the head with one constant output for all x, fitted to training data.

    Output and learned noise scale have maximum likelihood, by L-BFGS. A bound that is not above it gains nothing from
    its code.

    Raises:
        TypeError: for a likelihood that is not a head. For sequences, train a model whose decoder ignores z.

    >>> from gae.likelihood import Gaussian
    >>> head = Gaussian(nn.Linear(2, 3), 2)
    >>> without_code(head, torch.zeros(4, 3), torch.zeros(1, 3))  # three standard normals at their mean
    tensor([-2.7568])
    """
    head, values = likelihood.in_standard_units(train)
    if head is not likelihood:
        return without_code(head, values, likelihood.in_standard_units(x)[1], batch_size) - likelihood.log_volume
    if not isinstance(likelihood, Head):
        raise TypeError(
            f"A model without a code is known for heads only, and {type(likelihood).__name__} is none. Train a model "
            "of the same decoder without its latent as the baseline."
        )
    with door(likelihood, train):
        constant = _constant(likelihood, train, batch_size)
    with door(likelihood, x), torch.no_grad():
        return torch.cat([_scores(constant, batch) for batch in x.split(batch_size)])


class _ConstantOutput(nn.Module):
    """A decoder that ignores its code: start + unit · shift, with the shift as its parameter."""

    def __init__(self, start: Tensor, unit: Tensor):
        super().__init__()
        self.start, self.unit = start, unit
        self.shift = nn.Parameter(torch.zeros_like(start))

    def forward(self, z: Tensor) -> Tensor:
        return (self.start + self.unit * self.shift).expand(len(z), *self.start.shape)


def _constant(likelihood: Head, train: Tensor, batch_size: int) -> Head:
    head = deepcopy(likelihood)
    with torch.no_grad():
        start = likelihood.outputs(train.new_zeros(1, *head.latent_shape))[0]
    units = [part.scale for part in head.decoder.modules() if isinstance(part, Rescaled)]
    head.decoder = _ConstantOutput(start.clone(), units[-1] if units else torch.ones_like(start))
    parameters = [parameter for parameter in head.parameters(recurse=False) if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(
        [*parameters, *head.decoder.parameters()],
        max_iter=ITERATIONS,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=train.device)
        for batch in train.split(batch_size):
            loss = -_scores(head, batch).sum() / len(train)
            loss.backward()
            total += loss.detach()
        return total

    optimizer.step(closure)
    return head


def _scores(head: Head, x: Tensor) -> Float[Tensor, " B"]:
    z = x.new_zeros(1, 1, *head.latent_shape)
    return head.log_likelihood(x, head.outputs(z).expand(1, len(x), *head.output_shape))[0]
