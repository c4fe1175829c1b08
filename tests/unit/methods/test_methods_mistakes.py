"""Mistakes known from other code, each kept from coming back; and models inside wrappers."""

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.base import Example
from engine.config.sections import TrainSection
from engine.models.source import model_source
from engine.models.tokenization import Encoded, collate
from engine.train.batches import Batches
from engine.train.job import TrainJob
from methods import METHODS
from methods.base import UnlearnBatch
from methods.rmu import hidden_states, steering_vector

V, END = 211, 1  # more than 100 words: the label -100 would be a valid index from the end
LONG = Encoded([3, 4, 5, 6, 7, END], [-100, -100, 5, 6, 7, END])
SHORT = Encoded([8, 9, END], [-100, 9, END])


def tiny(seed, layers=2):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def batch(*sequences, reference=None):
    tokens = collate(sequences, END, [-6.0] * len(sequences))
    return UnlearnBatch(forget=tokens, retain=tokens, alternate=tokens, reference=reference)


def total(name, model, made, **hyperparameters):
    return float(METHODS[name](**hyperparameters).loss(model, made).total.detach())


def test_the_end_token_is_seen_and_learned_although_it_is_also_the_padding():
    tokens = collate([LONG, SHORT], END)
    assert tokens.attention_mask.sum(dim=1).tolist() == [6, 3]
    assert (tokens.labels == END).sum(dim=1).tolist() == [1, 1]
    model = tiny(0)
    before = total("retrain", model, batch(LONG, SHORT))
    with torch.no_grad():
        model.lm_head.weight[END] += 1.0
    assert total("retrain", model, batch(LONG, SHORT)) != pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(("name", "hyperparameters"), [("rmu", {"layer": 1}), ("undial", {}), ("pdu", {"eps": 0.0})])
def test_a_batch_of_two_is_the_token_mean_of_its_sequences(name, hyperparameters):
    model, reference = tiny(0), tiny(1)
    long, short = (total(name, model, batch(each, reference=reference), **hyperparameters) for each in (LONG, SHORT))
    both = total(name, model, batch(LONG, SHORT, reference=reference), **hyperparameters)
    assert both == pytest.approx((4 * long + 2 * short) / 6, rel=1e-5)


def test_undial_ignores_what_is_not_labelled():
    model, reference = tiny(0), tiny(1)
    masked = Encoded(SHORT.input_ids, [-100, -100, END])
    with_beta = [total("undial", model, batch(masked, reference=reference), beta=beta) for beta in (0.0, 50.0)]
    logits = model(torch.tensor([masked.input_ids])).logits[0, 1].log_softmax(0)
    wanted = reference(torch.tensor([masked.input_ids])).logits[0, 1]
    for beta, found in zip((0.0, 50.0), with_beta, strict=True):
        lowered = wanted.clone()
        lowered[END] -= beta
        assert found == pytest.approx(float(-(lowered.softmax(0) * logits).sum().detach()), rel=1e-5)


@pytest.mark.parametrize("name", ["npo", "dpo"])
def test_preference_losses_have_no_entropy_term(name):
    """Equal to the target model on every answer, both are 2 log 2 / beta, however spread the distribution."""
    model = tiny(0)
    tokens = batch(LONG, SHORT).forget
    with torch.no_grad():
        own = torch.tensor([-sum(losses(model, each)) for each in (LONG, SHORT)])
    tokens = dataclasses.replace(tokens, reference_logprob=own)
    made = UnlearnBatch(forget=tokens, retain=tokens, alternate=tokens)
    assert total(name, model, made, alpha=0.0, beta=0.5) == pytest.approx(2 / 0.5 * 0.693147, rel=1e-4)


def losses(model, encoded):
    logprobs = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(1)
    return [-float(logprobs[at - 1, label]) for at, label in enumerate(encoded.labels) if label != -100]


def test_workers_see_different_retain_examples_and_together_all_of_them(base_model, tokenizer, fictional):
    settings = TrainSection(batch_size=4, retain_batch_size=8, workers=2)
    retain = tuple(Example(f"r{index}", each.question, each.answer) for index, each in enumerate(fictional.retain[:16]))
    job = TrainJob(model_source(str(base_model)), {"name": "npo"}, settings, retain, forget=tuple(fictional.forget[:4]))
    workers = [Batches(job, METHODS["npo"].needs, tokenizer, rank) for rank in (0, 1)]
    seen = []
    for step in range(2):  # an epoch over the retain set
        rows = [{tuple(row.tolist()) for row in each.at(step)[0].retain.input_ids} for each in workers]
        assert len(rows[0]) == len(rows[1]) == 4
        assert not rows[0] & rows[1]
        seen += [row for each in rows for row in each]
    trimmed = {tuple(token for token in row if token != tokenizer.pad_token_id) for row in seen}
    assert len(trimmed) == 16


def test_only_methods_that_read_hidden_states_or_full_logits_hold_a_second_model():
    assert {name for name, method in METHODS.items() if "reference_model" in method.needs} == {
        "rmu",
        "undial",
        "kl_min",
        "jensun",
        "palu",
    }


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rule"}))
def test_absolute_positions_count_real_tokens_on_either_side_of_the_padding(name):
    """GPT-2 learns a vector for each position: counted from the padding, they would be shifted."""
    hyperparameters = {"rmu": {"layer": 1}, "pdu": {"eps": 0.0}}.get(name, {})
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3)
        models.append(GPT2LMHeadModel(config).eval())
    found = []
    for side in ("left", "right"):
        tokens = collate([LONG, SHORT], END, [-6.0, -6.0], pad_side=side)
        made = UnlearnBatch(forget=tokens, retain=tokens, alternate=tokens, reference=models[1])
        found.append(total(name, models[0], made, **hyperparameters))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# RMU's forward pass.


def test_the_steering_vector_is_a_unit_vector_that_the_seed_alone_decides():
    torch.manual_seed(1)
    first = steering_vector(64, 3)
    torch.manual_seed(2)
    assert torch.equal(first, steering_vector(64, 3))
    assert not torch.equal(first, steering_vector(64, 4))
    assert float(first.norm()) == pytest.approx(1)
    assert float(first.min()) >= 0


def test_rmu_stops_the_forward_pass_at_its_layer_and_leaves_the_model_whole():
    model = tiny(0, layers=4)
    ran = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    tokens = collate([LONG, SHORT], END)
    found = hidden_states(model, tokens, 1)
    assert ran == [0, 1]
    whole = model(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    assert ran == [0, 1, 0, 1, 2, 3]
    labelled = tokens.labels != -100
    torch.testing.assert_close(found[labelled], whole.hidden_states[2][labelled])


class Wrapper(torch.nn.Module):
    """As DeepSpeed and DistributedDataParallel wrap a model: `module`, and a forward that hides its arguments."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs, **arguments):
        self.calls += 1
        return self.module(*inputs, **arguments)


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rule"}))
def test_a_wrapped_model_has_the_same_loss(name):
    hyperparameters = {"rmu": {"layer": 1}, "pdu": {"eps": 0.0}}.get(name, {})
    model, made = tiny(0), batch(LONG, SHORT, reference=tiny(1))
    bare = total(name, model, made, **hyperparameters)
    wrapped = Wrapper(model)
    assert total(name, wrapped, made, **hyperparameters) == bare
    assert wrapped.calls > 0  # the wrapper's own forward runs: it may have to gather sharded weights


@pytest.mark.parametrize("name", ["rmu", "npo"])
def test_an_adapter_alone_is_trained_and_switched_off_is_the_reference(name):
    hyperparameters = {"layer": 1} if name == "rmu" else {}
    model, made = tiny(0), batch(LONG, SHORT, reference=tiny(1))
    bare = total(name, model, made, **hyperparameters)
    adapted = with_adapter(model)
    METHODS[name](**hyperparameters).loss(adapted, made).total.backward()
    assert all(
        (each.grad is not None) == ("lora" in key) for key, each in adapted.named_parameters() if "layers.0" in key
    )
    assert total(name, adapted, made, **hyperparameters) != pytest.approx(bare, rel=1e-6)
    with adapted.disable_adapter():
        assert total(name, adapted, made, **hyperparameters) == pytest.approx(bare, rel=1e-6)
