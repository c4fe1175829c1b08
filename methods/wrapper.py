"""Methods over another method: which one, and how each of its parts is handed on.

A base method's name and hyperparameters come in, as in an experiment file. SAM, ILU and BalDRO change one part of what
it does; RULE runs it again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from methods.base import Method, UnlearnBatch, unlearns_by_a_loss

if TYPE_CHECKING:
    from torch import Tensor


class WithBase(Method):
    """A method over a base method. base: its name and hyperparameters, as in an experiment file."""

    base: dict[str, Any] = {"name": "npo"}

    @field_validator("base")
    @classmethod
    def _is_a_method(cls, base: dict[str, Any]) -> dict[str, Any]:
        from methods import METHODS, make_method

        name = base.get("name")
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"base.name must be a method such as npo or grad_diff, found {name!r}")
        if not cls.can_be_over(METHODS[name]):
            raise ValueError(f"base.name must be a method that unlearns by a loss, {name} does not")
        make_method(base)
        return base

    @classmethod
    def can_be_over(cls, method: type[Method]) -> bool:
        """Whether this method can have that one as its base."""
        return unlearns_by_a_loss(method)

    def base_method(self) -> Method:
        """The base method with its hyperparameters."""
        from methods import make_method

        return make_method(self.base)

    @property
    def base_names(self) -> tuple[str, ...]:
        return (self.base["name"], *self.base_method().base_names)


class OwnAndBase:
    """What a wrapper needs: the names given here and all that its base does. Of the class, which has no base yet, those
    of the default one."""

    def __init__(self, *own: str) -> None:
        self.own = frozenset(own)

    def __get__(self, method: WithBase | None, owner: type[WithBase]) -> frozenset[str]:
        return self.own | (method or owner()).base_method().needs


class Wrapper(WithBase):
    """A method that trains as its base does but for what a subclass changes."""

    needs: ClassVar[frozenset[str]] = OwnAndBase()  # type: ignore[assignment]

    @classmethod
    def can_be_over(cls, method: type[Method]) -> bool:
        """A base has a forget loss to change, and its model is what was trained, not arithmetic on it."""
        return method.forget_loss is not Method.forget_loss and method.edited is Method.edited

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        return self.base_method().forget_loss(model, batch)

    def retain_loss(self, model: Any, batch: UnlearnBatch) -> Tensor:
        return self.base_method().retain_loss(model, batch)

    def weights(self, state: Mapping[str, float]) -> tuple[float, float]:
        return self.base_method().weights(state)

    def initial_state(self) -> dict[str, float]:
        return self.base_method().initial_state()

    def next_state(self, state: dict[str, float], losses: Mapping[str, float], epoch: float) -> dict[str, float]:
        return self.base_method().next_state(state, losses, epoch)

    def gradient_weights(
        self, forget_forget: float, forget_retain: float, state: Mapping[str, float]
    ) -> tuple[float, float]:
        return self.base_method().gradient_weights(forget_forget, forget_retain, state)

    @property
    def radius(self) -> float:
        return self.base_method().radius

    @property
    def layers(self) -> int | None:
        return self.base_method().layers

    @property
    def alternate_prompt(self) -> str | None:
        return self.base_method().alternate_prompt

    @property
    def alternate_samples(self) -> int:
        return self.base_method().alternate_samples
