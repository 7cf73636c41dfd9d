"""
Recompute a derivation
======================

The library's formulas stand in a ledger of claims, each with a check that computes both of its sides independently.
A published VAE has a KL term that halves log σ (claim D24): its check shows that the divergence as written is
negative, and where its minimum lies. ``gae notes D24`` prints the same with the proof.
"""

import matplotlib.pyplot as plt
import torch

from gae.ledger.notes import read_notes, run, select

notes = select(read_notes(), ["D24"])
(finding,) = run(notes, seed=0)
claim, check = finding.claim, finding.check
print(f"{claim.id}. {claim.title}")
print(f"claim:   {claim.statement}")
print(f"verdict: {check.verdict.value}")
print(f"instead: {claim.instead}")

# %%
# Both sides of every relation, and the error that was allowed
# ------------------------------------------------------------

for name, relations in finding.groups:
    for relation in relations:
        print(f"{name:10} {relation.outcome:7} {relation}")

# %%
# The term as it was published, and as it should be
# -------------------------------------------------
# At μ = 0, against s = log σ: a divergence is never negative, and zero at σ = 1 only.

s = torch.linspace(-2, 0.8, 200)
figure, axis = plt.subplots(figsize=(6.4, 3))
axis.plot(s, -0.5 * (1 + s - (2 * s).exp()), color="#D55E00", label="as published")
axis.plot(s, -0.5 * (1 + 2 * s - (2 * s).exp()), color="#0072B2", label="the divergence")
axis.axhline(0, color="#888888", lw=1)
axis.set(xlabel="log σ", ylabel="nats")
axis.legend()
plt.show()

# %%
# All claims of the ledger, by verdict
# ------------------------------------

verdicts = [claim.verdict.value for note in read_notes() for claim in note.claims]
figure, axis = plt.subplots(figsize=(6.4, 1.8))
names = ("holds", "holds if", "fails")
axis.barh(names, [verdicts.count(name) for name in names], color=("#009E73", "#E69F00", "#D55E00"))
axis.invert_yaxis()
axis.set_xlabel(f"claims, of {len(verdicts)}")
plt.show()
