"""Pipelines of transformers and sentence-transformers run the model, against each text alone."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    pipeline,
)

from softh_probe import SoftEntropyProbe
from tests.helpers.generation import PAD, VOCABULARY, alone, assert_same, prompts, tokenizer


def test_a_pipeline_that_generates_in_batches(model):
    texts = prompts(9, 4, 7)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer(), device="cpu")
    probe = SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        answers = generate(
            [" ".join(f"w{i}" for i in text.tolist()) for text in texts],
            batch_size=2,
            max_new_tokens=6,
            do_sample=False,
            suppress_tokens=[PAD],
            return_tensors=True,
        )
    sequences = []
    for text, (answer,) in zip(texts, answers, strict=True):
        ids = [i for i in answer["generated_token_ids"] if i != PAD]
        assert ids[: len(text)] == text.tolist()
        sequences.append(ids[:-1])
    assert_same(probe, alone(model, sequences, ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("feature-extraction", BertModel),
        ("fill-mask", BertForMaskedLM),
        ("text-classification", BertForSequenceClassification),
        ("token-classification", BertForTokenClassification),
    ],
)
def test_pipelines_of_encoders(task, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = kind(BertConfig(vocab_size=VOCABULARY, **sizes, pad_token_id=PAD, initializer_range=0.6)).eval()
    words = tokenizer()
    words.padding_side, words.mask_token = "right", "w2"
    texts = ["w5 w6 w2 w8", "w9 w2", "w4 w5 w6 w2 w7 w8"]
    probe, expected = SoftEntropyProbe(model, anchor_sets=1), SoftEntropyProbe(model, anchor_sets=1)
    with probe:
        pipeline(task, model=model, tokenizer=words, device="cpu")(texts, batch_size=3)
    with expected, torch.no_grad():
        for text in texts:
            model(**words(text, return_tensors="pt"))
    assert_same(probe, expected)


def test_sentence_transformers(tmp_path):
    """They wrap a model in modules of their own, and feed it sorted by length, padded."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertModel(BertConfig(vocab_size=VOCABULARY, **sizes, pad_token_id=PAD, initializer_range=0.6))
    words = tokenizer()
    words.padding_side = "right"
    bert.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    module = Transformer(str(tmp_path))
    embedder = SentenceTransformer(modules=[module, Pooling(32)], device="cpu")
    texts = ["w5 w6 w2 w8", "w9 w2", "w4 w5 w6 w2 w7 w8", "w3"]
    for model in (embedder, module.auto_model):
        probe, expected = SoftEntropyProbe(model, anchor_sets=1), SoftEntropyProbe(model, anchor_sets=1)
        with probe:
            embedder.encode(texts, batch_size=2, show_progress_bar=False)
        with expected, torch.no_grad():
            for text in texts:
                module.auto_model(**words(text, return_tensors="pt"))
        assert_same(probe, expected)


def test_a_pipeline_that_extracts_features(model):
    texts = prompts(9, 4, 7)
    extract = pipeline("feature-extraction", model=model.model, tokenizer=tokenizer(), device="cpu")
    probe = SoftEntropyProbe(model.model, anchor_sets=1)
    with probe:
        extract([" ".join(f"w{i}" for i in text.tolist()) for text in texts], batch_size=3)
    assert_same(probe, alone(model.model, texts, ["input_unigram", "output_unigram"]))
