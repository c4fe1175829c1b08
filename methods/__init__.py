"""The unlearning methods by name. A new one is a file here and a line below."""

from methods.base import Method
from methods.grad_ascent import GradAscent
from methods.grad_diff import GradDiff
from methods.npo import NPO
from methods.retrain import Retrain
from methods.rule import Rule
from methods.simnpo import SimNPO

METHODS: dict[str, type[Method]] = {
    "grad_ascent": GradAscent,
    "grad_diff": GradDiff,
    "npo": NPO,
    "simnpo": SimNPO,
    "rule": Rule,
    "retrain": Retrain,
}
