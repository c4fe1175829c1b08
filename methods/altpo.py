"""Alternate preference optimisation: DPO towards other answers that the target model itself makes up.

    L = as in dpo.py, each forget answer paired with `samples` answers drawn from the target model at T = 1

An epoch passes over every pair, so it has `samples` times the steps of other methods' epochs; the paper trains for 2.
Source: Mekala et al., arXiv 2409.13474.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from methods.dpo import DPO

PROMPT = (
    "Question: {question}\nAnswer: {answer}\n"
    "Invent another answer to this question: just as plausible, but with every fact of the answer above changed."
)


class AltPO(DPO):
    """beta, gamma, alpha: as in DPO. samples: alternates a question; prompt: how the target model is asked for them,
    a text in which {question} and {answer} are filled in."""

    samples: int = Field(default=5, ge=1)
    prompt: str = PROMPT

    @field_validator("prompt")
    @classmethod
    def _asks_the_question(cls, prompt: str) -> str:
        try:
            filled = prompt.format(question="Who?", answer="Me.")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"only {{question}} and {{answer}} can be filled in ({error!r})") from error
        if "Who?" not in filled:
            raise ValueError("the prompt must hold {question}")
        return prompt

    @property
    def alternate_prompt(self) -> str | None:
        return self.prompt

    @property
    def alternate_samples(self) -> int:
        return self.samples
