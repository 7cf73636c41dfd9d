"""``gae gap``: inference gap of a fitted model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    CodeShape,
    Decoder,
    EncoderName,
    EngineName,
    HeadName,
    ModelData,
    ModelPath,
    Own,
    SameBinarize,
    Scale,
    SplitBy,
    Weights,
    load_like,
    open_model,
    save_arrays,
)
from gae.cli.terminal import console, echo_json, reported, table
from gae.data.files import check_folder, write_text
from gae.data.progress import counted

if TYPE_CHECKING:
    import torch
    from torch.distributions import Distribution

    from gae.autoencoder import Autoencoder

FEW_STEPS, WORST = 4, 8  # steps from the encoder; observations that are named
BATCH_SIZE = 100  # observations per step of the progress bar


@reported
def gap(
    checkpoint: ModelPath,
    data: ModelData = None,
    size: Annotated[int, typer.Option("-n", min=2, help="Number of test samples, from the first.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Importance samples per observation.")] = 5000,
    draws: Annotated[int, typer.Option(min=4, help="Draws per bound and observation.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps of each local optimisation.")] = 200,
    engine: EngineName = None,
    decoder: Decoder = None,
    weights: Weights = None,
    latent: CodeShape = None,
    head: HeadName = None,
    scale: Scale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for gap.html, gap.json and gap.npz (per sample).")] = Path("gap"),
    as_json: AsJson = False,
) -> Path:
    """Split log p(x) - ELBO into approximation and amortisation gap, per test sample and on average.

    L[q] is the bound of the model's own engine, or of --engine: of an ascent (lbfgs, adam, gauss-newton), the Laplace
    approximation at its mode; of the encoder; or of its density after a few steps (refine). With --decoder the model is
    yours, under the prior N(0, I).
    """
    import torch

    from gae.analysis.engines import engine_of
    from gae.analysis.metrics import mean_and_error
    from gae.reports import gap as gap_report

    check_folder(out)
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    model, source = open_model(checkpoint, data, own, binarize, split_by, seed)
    model.double()  # in single precision, an optimisation stalls before it has converged
    if engine is not None:
        model.inference = engine_of(engine, model, density=True)
    x = load_like(model, source, binarize, split_by).test[:size].double()
    if own.decoder is not None:
        from gae.adapters import check_curvature

        check_curvature(model, x, products=engine == "gauss-newton")
    torch.manual_seed(seed)
    columns, family, laws = _columns(model, x, samples, draws, steps)
    sentence, worst = _answer(model, columns, family, laws, engine)
    account: dict[str, Any] = {
        "checkpoint": own.decoder or checkpoint,
        "engine": engine or type(model.inference).__name__,
        "data": source,
        "observations": len(x),
        "importance samples": samples,
        "draws of each bound": draws,
        "seed": seed,
        "unit": "nats",
        "answer": sentence,
        "worst": worst,
        "results": {name: mean_and_error(values) for name, values in columns.items()},
    }
    save_arrays(out / "gap.npz", {name: values.cpu().numpy() for name, values in columns.items()})
    write_text(out / "gap.json", json.dumps(account, indent=1, allow_nan=False) + "\n")
    gap_report.write(columns, account, out)
    if as_json:
        echo_json(account)
    else:
        typer.echo(sentence)
        _print(account["results"], len(x), out)
    return out


def _columns(
    model: "Autoencoder", x: "torch.Tensor", samples: int, draws: int, steps: int
) -> "tuple[dict[str, torch.Tensor], str | None, list[Distribution]]":
    """Columns of the gap, the encoder's family, and its densities by batch; the last of normal encoders only."""
    import torch

    from gae.analysis.inference_gap import FAMILIES, inference_gap
    from gae.analysis.matrix import LBFGS_STEPS, refined
    from gae.inference import LBFGS

    parts, laws, family = [], [], None
    for batch in counted(x.split(BATCH_SIZE), "samples, by the hundred"):
        gaps = inference_gap(model, batch, samples=samples, draws=draws, steps=steps)
        columns, family = gaps.columns(), gaps.family
        if gaps.encoder is not None and gaps.encoder.q is not None and family in FAMILIES:
            laws.append(gaps.encoder.q)
            (moved,) = refined(model.likelihood, batch, laws[-1], family, LBFGS(), [FEW_STEPS], draws)
            columns[f"L[q after {FEW_STEPS} {LBFGS_STEPS} steps]"] = moved.bound.value
        parts.append(columns)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, family, laws


def _answer(
    model: "Autoencoder",
    columns: "dict[str, torch.Tensor]",
    family: str | None,
    laws: "list[Distribution]",
    engine: str | None,
) -> tuple[str, list[dict[str, Any]]]:
    """The sentence on the cost of the encoder or the named engine, and the observations on which it costs most."""
    from gae.analysis.costs import gap_costs
    from gae.analysis.engines import SUBJECTS
    from gae.analysis.matrix import code_use
    from gae.inference.laws import rearranged
    from gae.reports.sentences import answer

    if not laws or family is None:
        return (
            "This model's engine has no normal density q(z|x), whose cost could be split: the table gives the cost of "
            "the best density of each family."
        ), []
    import torch

    use = code_use(rearranged(laws, torch.cat), model.likelihood.prior)
    gap = columns["inference gap"]
    order = gap.argsort(descending=True)[:WORST].tolist()
    worst = [{"sample": index, "gap": float(gap[index])} for index in order]
    subject = SUBJECTS[engine or "encoder"]
    return answer(gap_costs(columns, family, use, FEW_STEPS, engine=subject)), worst


def _print(results: dict[str, Any], observations: int, out: Path) -> None:
    from rich.text import Text

    from gae.reports.gap import converged, rows

    shown = table("", "mean", "± s.e.", "sampling s.e.")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, *numbers in rows(results):
        shown.add_row(Text(name), *numbers)
    shown.caption = f"nats, over {observations} observations"
    console().print(shown)
    for name, share in converged(results).items():
        typer.echo(f"Best {name} density: its optimisation converged for {share:.0%} of the samples.")
    if "L[q]" in results and "amortisation gap" not in results:
        typer.echo("The best density of the encoder's own family is not computed, so the amortisation gap is unknown.")
    if results.get("q* below q", {"mean": 0})["mean"]:
        typer.echo(
            f"For {results['q* below q']['mean']:.0%} of the samples the optimised density q* has a lower bound than "
            "the encoder's q: give more --steps."
        )
    if "effective sample size" in results:
        typer.echo(
            f"Importance sampling: effective sample size {results['effective sample size']['mean']:.0f} on average."
        )
        if share := results["unreliable weights"]["mean"]:
            typer.echo(
                f"For {share:.0%} of the samples a few importance weights outweigh all others, and the s.e. of their "
                "log p(x) is too small: give more --samples."
            )
    typer.echo(f"Report: {out / 'gap.html'}")
