"""What a run is judged by: one number per prompt, from the logits at its answer position.

Every metric is a pure function of a `Prediction`; a new one is a function and a line in `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patching.blocks import Readout
from patching.errors import InvalidOption, NotFinite


@dataclass(frozen=True)
class Contrast:
    """Answers against wrong answers, as tokens and the share that each has in the difference of mean logits."""

    tokens: Int[Tensor, "example token"]
    shares: Float[Tensor, "example token"]

    @classmethod
    def of(cls, answers: Int[Tensor, "example answer"], wrong: Int[Tensor, "example wrong_answer"]) -> Contrast:
        """-1 entries (padding) do not count."""
        real = [(tokens >= 0).double() for tokens in (answers, wrong)]
        shares = [each / each.sum(-1, keepdim=True).clamp(min=1) for each in real]
        tokens = torch.cat((answers, wrong), dim=-1).clamp(min=0)
        return cls(tokens, torch.cat((shares[0], -shares[1]), dim=-1))


@dataclass(frozen=True)
class Prediction:
    """The final residual at each prompt's answer position, and what the task says about it.

    Logits are unembedded on demand, so that a metric over a few tokens never pays for the vocabulary, and are
    given in float64, so that small differences of metrics survive. ``contrast`` saves making it again for every run.
    """

    residual: Float[Tensor, "*sample example d_model"]
    readout: Readout
    answers: Int[Tensor, "example answer"]
    wrong_answers: Int[Tensor, "example wrong_answer"]
    clean_log_probs: Float[Tensor, "example d_vocab"] | None = None
    contrast: Contrast | None = None

    @property
    def logits(self) -> Float[Tensor, "*sample example d_vocab"]:
        """All logits."""
        return self.readout.logits(self.residual).double()

    def logit_difference(self) -> Float[Tensor, "*sample example"]:
        """Mean logit of each prompt's answers minus that of its wrong answers; -1 entries (padding) do not count."""
        contrast = self.contrast or Contrast.of(self.answers, self.wrong_answers)
        return (self.readout.logits_of(self.residual, contrast.tokens).double() * contrast.shares).sum(-1)

    def log_prob(self, tokens: Int[Tensor, "example token"]) -> Float[Tensor, "*sample example"]:
        """Log of the probability that the next token is any of each prompt's tokens."""
        log_probs = torch.log_softmax(self.logits, dim=-1)
        index = tokens.clamp(min=0).expand(*log_probs.shape[:-1], tokens.shape[-1])
        chosen = log_probs.gather(-1, index).masked_fill(tokens < 0, -torch.inf)
        return torch.logsumexp(chosen, dim=-1)


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        name: as used in results and on the command line.
        higher_is_better: whether a run that behaves like the clean one scores high.
        function: from a prediction to one value per prompt.
        needs_clean: whether it compares with the clean run's log-probabilities.
        zero_gradient_when_clean: whether its gradient vanishes at the clean run (KL), so that
            gradient methods taken there see nothing.
    """

    name: str
    higher_is_better: bool
    function: Callable[[Prediction], Tensor]
    needs_clean: bool = False
    zero_gradient_when_clean: bool = False

    def __call__(self, prediction: Prediction) -> Float[Tensor, "*sample example"]:
        """The metric of every prompt.

        Raises:
            NotFinite: it is NaN or infinite for some.
            InvalidOption: the function does not give one value per prompt.
        """
        value = self.function(prediction)
        if value.shape != prediction.residual.shape[:-1]:
            raise InvalidOption(
                f"expected the metric {self.name!r} to give one value per prompt, of shape "
                f"{list(prediction.residual.shape[:-1])} here; got {list(value.shape)}. Leave averages out of it."
            )
        if not math.isfinite(float(value.detach().sum())):  # one reduction: the sum is finite iff every term is
            bad = (~torch.isfinite(value.detach())).reshape(-1, value.shape[-1]).any(0).nonzero().flatten().tolist()
            raise NotFinite(
                f"expected a finite {self.name}; it is NaN or infinite on prompts {bad[:10]} of this batch. "
                "Half precision overflows easily: use float32, or check the prompts and the metric."
            )
        return value

    def damage(self, value: Tensor, clean: Tensor) -> Tensor:
        """How much worse than the clean run: ``clean - value``, or ``value - clean`` when lower is better."""
        return clean - value if self.higher_is_better else value - clean


def _log_probability(prediction: Prediction) -> Tensor:
    return prediction.log_prob(prediction.answers)


def _probability(prediction: Prediction) -> Tensor:
    return prediction.log_prob(prediction.answers).exp()


def _probability_difference(prediction: Prediction) -> Tensor:
    return prediction.log_prob(prediction.answers).exp() - prediction.log_prob(prediction.wrong_answers).exp()


def _margin(prediction: Prediction) -> Tensor:
    logits = prediction.logits
    index = prediction.answers.clamp(min=0).expand(*logits.shape[:-1], prediction.answers.shape[-1])
    wanted = prediction.answers >= 0
    right = logits.gather(-1, index).masked_fill(~wanted, -torch.inf).amax(-1)
    # Padding points at its row's first answer, so that it takes nothing else out of the running.
    answers = torch.where(wanted, prediction.answers, prediction.answers.amax(-1, keepdim=True))
    others = logits.scatter(-1, answers.expand(index.shape), -torch.inf)
    return right - others.amax(-1)


def _loss(prediction: Prediction) -> Tensor:
    return -prediction.log_prob(prediction.answers)


def _kl(prediction: Prediction) -> Tensor:
    assert prediction.clean_log_probs is not None, "the engine hands over the clean log-probabilities"
    clean = prediction.clean_log_probs
    log_probs = torch.log_softmax(prediction.logits, dim=-1)
    return (clean.exp() * (clean - log_probs)).sum(-1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logit_difference", True, Prediction.logit_difference),
        Metric("margin", True, _margin),
        Metric("log_probability", True, _log_probability),
        Metric("probability", True, _probability),
        Metric("probability_difference", True, _probability_difference),
        Metric("loss", False, _loss),
        Metric("kl", False, _kl, needs_clean=True, zero_gradient_when_clean=True),
    )
}
"""Every metric by its name."""


def get(metric: str | Metric) -> Metric:
    """A metric by name.

    ``logit_difference`` (answer minus wrong answer), ``margin`` (best answer's logit minus the highest of all other
    tokens', which is positive exactly when the model is right), ``log_probability`` and ``probability`` of the answer,
    ``probability_difference``, ``loss`` (minus the answer's log-probability), ``kl`` (clean ‖ run).

    Raises:
        InvalidOption: there is no metric of that name.

    Example:
        >>> get("kl").higher_is_better
        False
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InvalidOption(f"expected a metric out of {', '.join(METRICS)}; got {metric!r}.")
    return METRICS[metric]
