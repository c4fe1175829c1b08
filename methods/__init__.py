"""The unlearning methods by name. A new one is a file here and a line below."""

from collections.abc import Mapping
from typing import Any

from methods.altpo import AltPO
from methods.baldro import BalDRO
from methods.base import Method
from methods.blur_npo import BlurNPO
from methods.ceu import CEU
from methods.dpo import DPO
from methods.flat import FLAT
from methods.grad_ascent import GradAscent
from methods.grad_diff import GradDiff
from methods.idk_dpo import IdkDPO
from methods.idk_nll import IdkNLL
from methods.ilu import ILU
from methods.jensun import JensUn
from methods.kl_min import KLMin
from methods.npo import NPO
from methods.npo_ent import NPOEnt
from methods.palu import PALU
from methods.pdu import PDU
from methods.retrain import Retrain
from methods.rmu import RMU
from methods.rule import Rule
from methods.sam import SAM
from methods.satimp import SatImp
from methods.simnpo import SimNPO
from methods.task_vector import TaskVector
from methods.undial import Undial
from methods.wga import WGA

FINE_TUNING = "retrain"  # the method whose loss fine-tunes target and retain model, which never read a forget set

METHODS: dict[str, type[Method]] = {
    "grad_ascent": GradAscent,
    "grad_diff": GradDiff,
    "kl_min": KLMin,
    "npo": NPO,
    "simnpo": SimNPO,
    "dpo": DPO,
    "idk_dpo": IdkDPO,
    "idk_nll": IdkNLL,
    "altpo": AltPO,
    "rmu": RMU,
    "undial": Undial,
    "wga": WGA,
    "satimp": SatImp,
    "ceu": CEU,
    "pdu": PDU,
    "npo_ent": NPOEnt,
    "flat": FLAT,
    "blur_npo": BlurNPO,
    "jensun": JensUn,
    "palu": PALU,
    "task_vector": TaskVector,
    "baldro": BalDRO,
    "sam": SAM,
    "ilu": ILU,
    "rule": Rule,
    "retrain": Retrain,
}


def versions_of(method: Mapping[str, Any]) -> dict[str, int]:
    """By name, the versions from 2 on of a method and of those that it is made over, for fingerprints."""
    names = (str(method["name"]), *make_method(method).base_names)
    return {name: METHODS[name].version for name in names if METHODS[name].version > 1}


def make_method(method: Mapping[str, Any]) -> Method:
    """A method from its "name" and its hyperparameters, as in an experiment file."""
    return METHODS[method["name"]](**{key: value for key, value in method.items() if key != "name"})
