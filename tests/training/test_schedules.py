"""Learning-rate schedules against torch's own, stepped by hand, and against formulas."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.lr_scheduler import LRScheduler

from gae.storage.packing import pack, unpack
from gae.systems import ae, pca, vq_vae
from gae.training import Callback, cosine, fit, linear
from gae.training.callbacks import TrainingRun

quiet = partial(fit, progress=False)
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LR = 0.01
sgd = partial(SGD, lr=LR)


def one_cycle(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return torch_schedules.OneCycleLR(optimizer, 0.1, total_steps)


def two_parts(optimizer: Optimizer) -> LRScheduler:
    warm_up = torch_schedules.LinearLR(optimizer, 0.1, total_iters=3)
    return torch_schedules.SequentialLR(optimizer, [warm_up, torch_schedules.ExponentialLR(optimizer, 0.9)], [3])


TORCHS: list[Callable[..., LRScheduler]] = [
    partial(torch_schedules.StepLR, step_size=3),
    partial(torch_schedules.MultiStepLR, milestones=[2, 7]),
    partial(torch_schedules.CosineAnnealingLR, T_max=6),
    partial(torch_schedules.CosineAnnealingWarmRestarts, T_0=3),
    partial(torch_schedules.CyclicLR, base_lr=1e-3, max_lr=1e-2, step_size_up=2, cycle_momentum=False),
    partial(torch_schedules.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    two_parts,
]


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, run: TrainingRun) -> None:
        (rate,) = run.learner.rates().values()
        self.seen.append(rate)


def used(scheduler: Any, epochs: int, **options: Any) -> list[float]:
    watch = Rates()
    model = ae((5,), 2, (8,))
    quiet(model, X, epochs=epochs, batch_size=10, optimizer=sgd, scheduler=scheduler, callbacks=[watch], **options)
    return watch.seen


def by_hand(make: Callable[[Optimizer], LRScheduler], steps: int) -> list[float]:
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("make", TORCHS)
def test_a_schedule_is_stepped_after_each_step_of_the_optimiser(make: Callable[..., LRScheduler]) -> None:
    rates = used(make, epochs=3)
    assert len(set(rates)) > 1 and rates == by_hand(make, 12)


def test_a_schedule_over_the_whole_run_is_given_its_steps() -> None:
    assert used(one_cycle, epochs=3) == by_hand(partial(one_cycle, total_steps=12), 12)
    assert used(one_cycle, epochs=2, accumulate=2) == by_hand(partial(one_cycle, total_steps=4), 4)


def test_cosine_and_linear_end_at_zero() -> None:
    up = [LR * (i + 1) / 4 for i in range(3)]
    half = [LR * (1 + math.cos(math.pi * i / 9)) / 2 for i in range(9)]
    assert used(partial(cosine, warm_up=3), epochs=3) == pytest.approx(up + half, rel=1e-12)
    assert used(linear, epochs=2) == pytest.approx([LR * (1 - i / 8) for i in range(8)], rel=1e-12)
    with pytest.raises(ValueError, match="from 0 to below the 8 steps of the run, got 8"):
        used(partial(cosine, warm_up=8), epochs=2)


@pytest.mark.parametrize("make", [*TORCHS, partial(one_cycle, total_steps=12), partial(cosine, total_steps=12)])
def test_stored_states_continue_a_schedule(make: Callable[..., LRScheduler]) -> None:
    rates = by_hand(make, 12)
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    scheduler = make(optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    states = pack([optimizer.state_dict(), scheduler.state_dict()])
    stored = unpack(json.loads(json.dumps(states[0])), states[1])
    again = sgd([nn.Parameter(torch.zeros(1))])
    resumed, later = make(again), []
    again.load_state_dict(stored[0])
    resumed.load_state_dict(stored[1])
    for _ in range(7):
        later.append(again.param_groups[0]["lr"])
        again.step()
        resumed.step()
    assert later == rates[5:]


def test_another_schedule_is_not_resumed(tmp_path: Path) -> None:
    used(TORCHS[0], epochs=1, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"scheduler.arguments.step_size was 3, now 4"):
        used(partial(torch_schedules.StepLR, step_size=4), epochs=1, out=tmp_path / "a", resume=True)
    used(cosine, epochs=1, out=tmp_path / "b")
    with pytest.raises(ValueError, match=r"scheduler.total_steps was 4, now 8"):
        used(cosine, epochs=2, out=tmp_path / "b", resume=True)


def test_schedules_that_fit_refuses() -> None:
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    for wrong, message in (
        (torch_schedules.StepLR(optimizer, 3), "scheduler"),
        ("cosine", "scheduler"),
        (torch_schedules.ReduceLROnPlateau, "stepped without a metric"),
        (lambda given: given, "which returned SGD"),
        (lambda given: torch_schedules.StepLR(optimizer, 3), "the optimizer that it is given"),
    ):
        with pytest.raises(TypeError, match=message):
            used(wrong, epochs=1)


@pytest.mark.parametrize("option", [{"scheduler": cosine}, {"accumulate": 2}, {"steps": 10}])
def test_closed_forms_refuse_options_of_an_optimiser(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is for an optimizer, and this model learns in closed form"):
        quiet(pca((5,), latent=2), X, **option)


@pytest.mark.parametrize("steps,epochs", [(1, 1), (8, 2), (9, 3)])
def test_a_budget_in_steps_is_rounded_up_to_epochs(steps: int, epochs: int) -> None:
    history = quiet(ae((5,), 2, (8,)), X, steps=steps, batch_size=10)
    assert len(history.rows) == epochs
    with pytest.raises(ValueError, match=f"Give epochs or steps, not both; got epochs=2 and steps={steps}"):
        quiet(ae((5,), 2, (8,)), X, steps=steps, epochs=2)


momentum = partial(SGD, lr=0.01, momentum=0.9)
lbfgs = partial(torch.optim.LBFGS, max_iter=2)


@pytest.mark.parametrize(
    "build,n,optimizer,epochs",
    [
        (ae, 40, momentum, 3),
        (ae, 34, momentum, 3),
        (ae, 37, momentum, 3),
        (ae, 10, lbfgs, 1),
        (partial(vq_vae, positions=2, vectors=4, width=2, hidden=(8,)), 34, momentum, 2),
    ],
)
def test_accumulated_gradients_are_those_of_a_larger_batch(build: Any, n: int, optimizer: Any, epochs: int) -> None:
    """Batches of 12 in parts of 4; the last has 4, 10 or 1 more: parts of 4, of 4, 4 and 2, and of 4, 4 and 5.

    A codebook of moving averages is updated once for a batch, from the moments of its parts.
    """
    trained = []
    for options in ({"batch_size": 12}, {"batch_size": 4, "accumulate": 3}):
        torch.manual_seed(0)
        model = build((5,)).double()
        quiet(model, X[:n].double(), epochs=epochs, optimizer=optimizer, clip=1.0, **options)
        trained.append(model.state_dict())
    whole, parts = trained
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-8, atol=1e-10)


def test_parts_of_a_batch_bound_the_memory() -> None:
    sizes: list[int] = []
    model = ae((5,), 2, (8,))
    model.inference.register_forward_pre_hook(lambda _, args: sizes.append(len(args[1])) if model.training else None)
    quiet(model, X[:37], epochs=1, batch_size=4, accumulate=3)
    assert sizes == [4] * 8 + [5]
