"""The attacks by name. A new one is a file here and a line below."""

from engine.robustness.attacks.finetune import Finetune
from engine.robustness.attacks.interpolate import Interpolate
from engine.robustness.attacks.prompts import Prompts
from engine.robustness.attacks.prune import Prune
from engine.robustness.attacks.quantize import Quantize
from engine.robustness.attacks.relearn import Relearn
from engine.robustness.base import Attack

ATTACKS: dict[str, type[Attack]] = {
    "quantize": Quantize,
    "relearn": Relearn,
    "finetune": Finetune,
    "prompts": Prompts,
    "prune": Prune,
    "interpolate": Interpolate,
}
