"""What is learned from pairs: the loss of each pair, from the summed log-probabilities of its two answers.

    dpo    −log σ(β (Δc − Δr)),  Δ = log π(y|x) − log π_ref(y|x)                     Rafailov et al. 2023, arXiv:2305.18290, equation 7
    kto    (d (1 − σ(β (Δc − z))) + u (1 − σ(β (z − Δr)))) / 2                       Ethayarajh et al. 2024, arXiv:2402.01306, equation 8
    orpo   −β log σ(log odds(c) − log odds(r)),  beside the NLL of the answer        Hong et al. 2024, arXiv:2403.07691, equations 4 to 7
    simpo  −log σ(β (log π(c)/|c| − log π(r)/|r|) − γ)                               Meng et al. 2024, arXiv:2405.14734, equation 6

With label smoothing ε, dpo and simpo take (1 − ε) of −log σ(z) and ε of −log σ(−z) (conservative DPO, Mitchell 2023).
ORPO's probabilities are per token, as are SimPO's: the mean log-probability of the answer's tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from tunery.tasks.preference import Options


def pair_losses(
    options: Options, sums: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None, baseline: torch.Tensor | float
) -> torch.Tensor:
    """(P,) losses of P pairs, without the NLL part.

    sums: (P, 2) summed log-probabilities, the preferred answer's first; lengths: (P, 2) their tokens; reference: (P, 2) the sums under
    the reference model, for dpo and kto; baseline: KTO's z, the divergence from the reference, at least 0 and without gradient.
    """
    beta = options.beta
    assert beta is not None
    if options.loss in ("dpo", "kto"):
        assert reference is not None
        chosen, rejected = (sums - reference).unbind(1)
        if options.loss == "dpo":
            return _smoothed(beta * (chosen - rejected), options.label_smoothing)
        desired = 1 - torch.sigmoid(beta * (chosen - baseline))
        undesired = 1 - torch.sigmoid(beta * (baseline - rejected))
        assert options.desirable_weight is not None
        assert options.undesirable_weight is not None
        return (options.desirable_weight * desired + options.undesirable_weight * undesired) / 2
    chosen, rejected = (sums / lengths).unbind(1)
    if options.loss == "orpo":
        odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
        return -beta * logsigmoid(odds)
    assert options.gamma is not None
    return _smoothed(beta * (chosen - rejected) - options.gamma, options.label_smoothing)


def _smoothed(logits: torch.Tensor, smoothing: float | None) -> torch.Tensor:
    if not smoothing:
        return -logsigmoid(logits)
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 − eˣ) for x < 0, without cancellation (Mächler 2012). At 0, an answer that is certain, its gradient would be no number."""
    x = x.clamp(max=-1e-6)
    return torch.where(x < -0.6931471805599453, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))
