"""Methods over a base method: BalDRO, SAM and ILU change the loss that they say and carry the rest."""

import dataclasses

import numpy as np
import pytest

from engine.models.tokenization import collate
from methods import METHODS
from methods.base import UnlearnBatch
from tests.unit.methods.formulas import (
    ALTERNATE,
    ALTERNATE_REFERENCE,
    FORGET,
    FORGET_REFERENCE,
    PAD,
    RETAIN,
    batch,
    log_sigmoid,
    nll,
    ratios,
    slope_of_scale,
    token_losses,
    worst_case,
)

WRAPPERS = ("baldro", "sam", "ilu")
PDU = {"name": "pdu", "eps": 0.5, "alpha": 1.5, "gamma": 0.1}


def test_baldros_group_is_the_samples_that_the_model_knows_best(model, reference):
    method = METHODS["baldro"](base={"name": "npo", "beta": 0.4}, variant="group", share=0.5)
    known = int(np.argmin([np.mean(token_losses(model, each)) for each in FORGET]))
    expected = -2 / 0.4 * log_sigmoid(0.4 * ratios(model, FORGET, FORGET_REFERENCE))[known]
    assert float(method.loss(model, batch(reference)).forget.detach()) == pytest.approx(expected, rel=5e-6)


def test_baldros_worst_case_lies_between_the_mean_and_the_worst_sample(model, reference):
    losses = -2 / 0.1 * log_sigmoid(0.1 * ratios(model, FORGET, FORGET_REFERENCE))
    for tau, expected in ((1e4, losses.mean()), (1e-3, losses.max())):
        found = METHODS["baldro"](tau=tau).loss(model, batch(reference)).forget
        assert float(found.detach()) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("pad_side", ["left", "right"])
@pytest.mark.parametrize("variant", ["dv", "group"])
@pytest.mark.parametrize("base", ["dpo", "jensun", "undial", "ceu", "flat", "grad_ascent"])
def test_baldro_takes_alternates_and_references_of_the_same_samples(model, reference, base, variant, pad_side):
    method = METHODS["baldro"](base={"name": base}, variant=variant, share=0.5, tau=1e-3)
    given = batch(reference, pad_side)
    each = [
        METHODS[base]()
        .loss(
            model,
            UnlearnBatch(
                retain=given.retain,
                forget=collate([FORGET[index]], PAD, [FORGET_REFERENCE[index]]),
                alternate=collate([ALTERNATE[index]], PAD, [ALTERNATE_REFERENCE[index]]),
                reference=reference,
            ),
        )
        .forget.item()
        for index in range(2)
    ]
    known = int(np.argmin([np.mean(token_losses(model, sequence)) for sequence in FORGET]))
    expected = each[known] if variant == "group" else max(each)
    assert float(method.forget_loss(model, given).detach()) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_needs_what_its_base_does_and_carries_its_state(model, reference, name):
    over = METHODS[name](base=PDU)
    own = {"sam": {"two_gradients"}}.get(name, set())
    assert over.needs == {"retain"} | own
    assert METHODS[name](base={"name": "jensun"}).needs == {"retain", "alternate", "reference_model"} | own
    assert METHODS[name].needs == METHODS["npo"].needs | own  # of the class: over its default base
    assert over.initial_state() == {"lambda": 1.5}
    held = over.next_state({"lambda": 1.5}, {"retain": 2.5}, epoch=6.0)
    assert held == {"lambda": 3.5}
    plain = dataclasses.replace(batch(reference), state=held)
    assert over.weights(held) == (0.1, 3.5)
    assert float(over.loss(model, plain).total.detach()) > 0


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("base", [{"name": "retrain"}, {"name": "task_vector"}, {"name": "rule"}, {}, {"name": "pdu"}])
def test_a_wrapper_refuses_a_base_whose_forget_loss_it_cannot_change(name, base):
    with pytest.raises(ValueError, match=r"base|eps"):
        METHODS[name](base=base)


def test_wrappers_stand_over_each_other(model, reference):
    inner = {"name": "ilu", "lambda_invariance": 0.4, "base": {"name": "baldro", "tau": 0.6, "base": {"name": "npo"}}}
    method = METHODS["sam"](rho=0.02, base=inner)
    loss = method.loss(model, batch(reference))
    assert float(loss.forget.detach()) == pytest.approx(worst_case(model, 0.1, 0.6), rel=5e-6)
    assert float(loss.retain.detach()) == pytest.approx(nll(model, RETAIN) + 0.4 * slope_of_scale(model) ** 2, rel=5e-6)
    assert METHODS["ilu"](base={"name": "sam", "rho": 0.02}).radius == method.radius == 0.02
