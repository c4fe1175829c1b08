"""All that an experiment will load is looked at before its first stage, and named by the key that asked for it."""

import json
import shutil

import pytest
from transformers import (
    BertConfig,
    GPT2Config,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    T5Config,
)

from benchmarks import BENCHMARKS
from engine.config.experiment import parse_experiment
from engine.config.sections import ModelSection
from engine.errors import UserError
from engine.models.source import model_source
from engine.pipeline.model_checks import check_metrics, check_model
from engine.pipeline.run import run
from engine.store.store import Store


@pytest.fixture
def folder(base_model, tmp_path):
    return shutil.copytree(base_model, tmp_path / "model")


def checked(folder, **keys):
    check_model(model_source(str(folder)), ModelSection(path=str(folder), **keys), "model.path")


def line(folder, **keys):
    with pytest.raises(UserError) as caught:
        checked(folder, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_good_model_passes(folder):
    checked(folder)


@pytest.mark.parametrize(
    "config",
    [MambaConfig(), JambaConfig(), Lfm2Config(full_attn_idxs=[0]), BertConfig(), T5Config()],
    ids=lambda config: config.model_type,
)
def test_an_architecture_that_cannot_be_sampled_is_refused(folder, config):
    config.save_pretrained(folder)
    assert line(folder).startswith(f"model.path: {config.model_type} ")


@pytest.mark.parametrize("config", [GPT2Config, LlamaConfig, MistralConfig])
def test_decoders_are_not(folder, config):
    config().save_pretrained(folder)
    checked(folder)


def test_a_padding_id_beyond_the_embedding_is_refused(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert f"padding token '[PAD]' has the id {rows}, but the model's embedding has {rows} rows" in line(folder)


def test_a_system_prompt_that_the_template_refuses_is_named_by_its_key(folder):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert line(folder, system="Be brief.").startswith("model.system: ")
    checked(folder)


def experiment(**keys):
    return parse_experiment({"benchmark": {"name": "fictional"}, **keys}, "test")


@pytest.mark.parametrize("metric", ["entailment", "entailment_es", "fluency", "cosine"])
def test_a_missing_model_of_a_metric_is_named_by_its_option(metric, tmp_path):
    benchmark = BENCHMARKS["fictional"].load()
    asked = experiment(metrics=[metric], metric_options={metric: {"model": str(tmp_path / "none")}})
    with pytest.raises(UserError, match=rf"metric_options\.{metric}\.model: there is no folder"):
        check_metrics(asked, benchmark)


def test_a_classifier_without_the_label_is_refused_before_it_is_asked(folder):
    asked = experiment(metrics=["entailment"], metric_options={"entailment": {"model": str(folder)}})
    with pytest.raises(UserError, match="one label named entailment"):
        check_metrics(asked, BENCHMARKS["fictional"].load())


def test_nothing_is_filled_where_something_to_load_is_missing(tmp_path):
    asked = experiment(metrics=["entailment"], metric_options={"entailment": {"model": str(tmp_path / "none")}})
    with pytest.raises(UserError, match="metric_options"):
        run(asked, Store(tmp_path / "store"), quiet=True)
    assert not list((tmp_path / "store").glob("*/*/manifest.json"))
    assert not list((tmp_path / "store").glob("*/*.work"))
