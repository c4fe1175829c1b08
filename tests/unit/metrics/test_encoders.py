"""Entailment and cosine equal what the model says of each pair alone, on small models made on the spot."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from engine.errors import UserError
from engine.metrics import Failed, known_by, score, score_counted
from engine.metrics.cosine import cosine
from engine.metrics.encoders import label_index, load_encoder
from engine.metrics.entailment import entailment
from engine.metrics.fluency import fluency

WORDS = "the a red blue fox hare sat ran on mat hill and then it slept under tall old tree".split()
LONGEST = 40


def make_tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LONGEST,
    )


SIZE = {"vocab_size": 4 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 64, "max_position_embeddings": LONGEST, "pad_token_id": 0}


def save_classifier(folder, labels=("neutral", "ENTAILMENT", "not_entailment")):
    torch.manual_seed(0)
    config = DebertaV2Config(
        **SIZE,
        type_vocab_size=2,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        initializer_range=0.5,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("nli"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZE, initializer_range=0.5)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 16, 60)]


def label_of(folder, premise, hypothesis):
    model = DebertaV2ForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return int(model(**make_tokenizer()(premise, hypothesis, return_tensors="pt")).logits.argmax())


def test_entailment_is_the_label_of_response_then_reference(classifier, texts):
    responses, references = texts[:30], texts[30:]
    expected = [float(label_of(classifier, *pair) == 1) for pair in zip(responses, references, strict=True)]
    assert 0 < sum(expected) < 30
    assert entailment(responses, references, model=str(classifier), batch_size=7) == expected
    swapped = [float(label_of(classifier, *pair) == 1) for pair in zip(references, responses, strict=True)]
    assert swapped != expected  # so that the order was put to the test


def test_each_distinct_pair_is_seen_once(classifier, monkeypatch):
    encoder = load_encoder("AutoModelForSequenceClassification", str(classifier))
    rows = []
    forward = encoder.model.forward
    monkeypatch.setattr(
        encoder.model, "forward", lambda **batch: rows.append(len(batch["input_ids"])) or forward(**batch)
    )
    entailment(["red fox"] * 50 + ["blue hare"] * 50, ["the fox"] * 100, model=str(classifier))
    assert sum(rows) == 2


def test_a_batch_that_does_not_fit_in_memory_is_halved(classifier, texts, monkeypatch):
    expected = entailment(texts[:30], texts[30:], model=str(classifier))
    encoder = load_encoder("AutoModelForSequenceClassification", str(classifier))
    forward, rows = encoder.model.forward, []

    def small(**batch):
        rows.append(len(batch["input_ids"]))
        if rows[-1] > 5:
            raise torch.cuda.OutOfMemoryError
        return forward(**batch)

    monkeypatch.setattr(encoder.model, "forward", small)
    assert entailment(texts[:30], texts[30:], model=str(classifier), batch_size=16) == expected
    assert rows[:3] == [16, 8, 4]


def test_a_model_that_was_written_over_is_another_one(tmp_path):
    """In one process, as a notebook is, and in what stages of scores are known by."""

    def saved(seed):
        torch.manual_seed(seed)
        BertModel(BertConfig(**SIZE, initializer_range=0.5)).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        options = {"model": str(tmp_path)}
        return cosine(["red fox ran"], ["blue hare sat"], **options), known_by("cosine", options)

    (one, known), (other, known_as) = saved(1), saved(2)
    assert one != other
    assert known != known_as
    assert saved(1) == (one, known)


def test_the_rouge_filter_zeroes_responses_that_share_no_words(classifier, texts):
    responses, references = texts[:30], texts[30:]
    plain = entailment(responses, references, model=str(classifier))
    recall = score("rouge_l_recall", responses, references)
    filtered = entailment(responses, references, model=str(classifier), rouge_filter=0.2)
    assert filtered == [value if r >= 0.2 else 0.0 for value, r in zip(plain, recall, strict=True)]
    assert filtered != plain
    assert score("entailment_es", responses, references, model=str(classifier), rouge_filter=0.2) == filtered
    es = score("entailment_es", responses, references, model=str(classifier))
    assert es == [value if r >= 0.1 else 0.0 for value, r in zip(plain, recall, strict=True)]


def test_blank_responses_score_nothing_and_shift_no_other(classifier, embedder, texts):
    responses, references = texts[:6], texts[6:12]
    for metric, folder in (("entailment", classifier), ("entailment_es", classifier), ("cosine", embedder)):
        apart = [score(metric, [a], [b], model=str(folder))[0] for a, b in zip(responses, references, strict=True)]
        mixed = score(
            metric,
            ["", *responses[:3], " \n", *responses[3:]],
            ["red", *references[:3], "red", *references[3:]],
            model=str(folder),
        )
        assert mixed == pytest.approx([0.0, *apart[:3], 0.0, *apart[3:]], abs=1e-6)


def test_a_long_response_is_cut_and_a_reference_that_does_not_fit_fails(classifier):
    long = " ".join(WORDS * 5)
    cut = " ".join((WORDS * 5)[: LONGEST - 3 - 2])
    assert entailment([long], ["red fox"], model=str(classifier)) == entailment(
        [cut], ["red fox"], model=str(classifier)
    )
    found = entailment(["red", "red"], [long, "red fox"], model=str(classifier))
    assert isinstance(found[0], Failed)
    assert isinstance(found[1], float)


def test_odd_characters_are_no_failure(classifier, embedder):
    assert None not in score("entailment", ["\ud800 red", "日本"], ["fox", "\udfff"], model=str(classifier))
    assert None not in score("cosine", ["\ud800 red", "日本"], ["fox", "\udfff"], model=str(embedder))


def test_an_output_that_is_not_finite_is_a_failure(classifier, embedder, monkeypatch):
    for kind, folder, metric in (
        ("AutoModelForSequenceClassification", classifier, "entailment"),
        ("AutoModel", embedder, "cosine"),
    ):
        encoder = load_encoder(kind, str(folder))
        parameter = encoder.model.get_input_embeddings().weight
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(float("nan"))
        found = score_counted(metric, ["red", ""], ["fox", "fox"], model=str(folder))
        with torch.no_grad():
            parameter.copy_(kept)
        assert found.scores == [None, 0.0]
        assert sum(found.failures.values()) == 1


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("not_entailment", "other"), ("entailment", "Entailment")])
def test_a_classifier_without_one_entailment_label_is_refused(names):
    with pytest.raises(UserError, match="one label named entailment"):
        label_index(dict(enumerate(names)), "entailment", "some/model")


def test_fluency_is_the_probability_of_the_clean_label(tmp_path, texts):
    folder = save_classifier(tmp_path, labels=("noise", "clean", "word salad"))
    model = DebertaV2ForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = [model(**make_tokenizer()(text, return_tensors="pt")).logits[0] for text in texts[:9]]
    expected = [float(each.double().softmax(-1)[1]) for each in logits]
    found = fluency([*texts[:9], " ", texts[0]], [""] * 11, model=str(folder), batch_size=4)
    assert found == pytest.approx([*expected, 0.0, expected[0]], rel=1e-4)
    with pytest.raises(UserError, match="one label named dirty, found noise, clean, word salad"):
        fluency(["a fox"], [""], model=str(folder), label="dirty")


def test_cosine_is_that_of_mean_pooled_states(embedder, texts):
    responses, references = texts[:30], texts[30:]
    model = BertModel.from_pretrained(embedder).eval()

    def embed(text):
        with torch.inference_mode():
            return model(**make_tokenizer()(text, return_tensors="pt")).last_hidden_state[0].double().mean(0).numpy()

    pairs = [(embed(a), embed(b)) for a, b in zip(responses, references, strict=True)]
    expected = [max(0.0, a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs]
    assert cosine(responses, references, model=str(embedder), batch_size=7) == pytest.approx(expected, abs=1e-5)
    assert cosine(responses, responses, model=str(embedder)) == pytest.approx([1.0] * 30)
    assert max(cosine(responses, responses, model=str(embedder))) <= 1.0


def test_cosine_is_clipped_at_nought(embedder, monkeypatch):
    monkeypatch.setattr("engine.metrics.cosine._embed", lambda texts, *_: np.array([[1.0, 0], [-1, 0.1]])[: len(texts)])
    assert cosine(["a"], ["b"], model="any") == [0.0]


def sentence_model(tmp_path, embedder, pooling, kind="Pooling", length=None):
    """The embedder dressed as a sentence-transformers folder."""
    for file in embedder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "1_Pooling", "type": f"sentence_transformers.models.{kind}"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return str(tmp_path)


def test_a_sentence_model_cuts_where_it_was_made_to(tmp_path, embedder):
    folder = sentence_model(tmp_path, embedder, {"pooling_mode_mean_tokens": True}, length=5)
    assert cosine(["red fox sat on hill"], ["red fox sat"], model=folder) == pytest.approx([1.0])
    assert cosine(["red fox sat on hill"], ["red fox sat"], model=str(embedder))[0] < 0.9999


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "Pooling"),
        ({"pooling_mode": "cls"}, "Pooling"),
        ({}, "Dense"),
    ],
)
def test_a_model_that_does_not_pool_by_the_mean_is_refused(tmp_path, embedder, pooling, kind):
    with pytest.raises(UserError, match=r"pools by|mean-pooled"):
        cosine(["red"], ["fox"], model=sentence_model(tmp_path, embedder, pooling, kind))


@pytest.mark.parametrize("metric", ["entailment", "cosine"])
def test_a_model_that_is_not_there_is_the_users_mistake(metric, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        score(metric, ["a"], ["b"], model=str(tmp_path / "absent"))


def test_weights_that_are_no_safetensors_are_refused(tmp_path, embedder):
    for file in embedder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        score("cosine", ["a"], ["b"], model=str(tmp_path))


@pytest.mark.parametrize("metric", ["entailment", "cosine"])
def test_a_reference_that_the_models_vocabulary_lacks_has_no_score(metric, classifier, embedder):
    model = str(classifier if metric == "entailment" else embedder)
    found = score_counted(metric, ["北 京", "the fox"], ["北 京", "the fox"], model=model)
    assert found.scores[0] is None
    assert found.scores[1] is not None
    assert "vocabulary lacks most of the reference" in next(iter(found.failures))
