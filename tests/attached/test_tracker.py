"""A model that other code runs: what counts, and its labels, against each sequence alone, unpadded and uncached."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DynamicCache,
    GenerationMixin,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)
from transformers.cache_utils import Cache

from softh_probe import SoftEntropyProbe
from softh_probe.errors import InputError, ProbeError
from softh_probe.patching import replaced

LABEL_SETS = [(), ("input_unigram", "output_unigram"), ("input_trigram", "output_bigram")]
VOCABULARY, PAD, EOS = 30, 0, 1


@pytest.fixture
def model():
    return make_model()


def make_model(config=None):
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.6,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def left_padded(texts):
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    for row, text in zip(ids, texts, strict=True):
        row[longest - len(text) :] = text
    mask = torch.stack([torch.arange(longest) >= longest - len(text) for text in texts]).long()
    return {"input_ids": ids, "attention_mask": mask}


def alone(model, sequences, labels, **settings):
    """Each sequence of tokens in a pass of its own."""
    probe = SoftEntropyProbe(model, labels=labels, **settings)
    with probe, torch.no_grad():
        for sequence in sequences:
            model(input_ids=torch.as_tensor(sequence)[None], use_cache=False)
    return probe


def assert_same(probe, expected):
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    ours, theirs = (
        p.result().to_pandas().query("metric.isin(['conditional_entropy', 'coverage'])") for p in (probe, expected)
    )
    assert ours.label_set.tolist() == theirs.label_set.tolist()
    torch.testing.assert_close(torch.tensor(ours.value.values), torch.tensor(theirs.value.values), rtol=1e-4, atol=1e-4)


def fed_back(output, inputs, ends=(EOS,)):
    """Of what generate returned, the tokens that were fed: each sequence without its padding and its last token."""
    sequences = []
    for row, mask in zip(output, inputs["attention_mask"], strict=True):
        prompt = row[: len(mask)][mask.bool()]
        new = row[len(mask) :].tolist()
        new = new[: next((i for i, token in enumerate(new) if token in ends), -1)]
        sequences.append(torch.cat([prompt, torch.tensor(new, dtype=torch.long)]))
    return sequences


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "prefill_chunk_size": 3},
        {"do_sample": False, "cache_implementation": "sliding_window"},
        {"do_sample": True, "num_return_sequences": 3, "return_dict_in_generate": True, "output_hidden_states": True},
        {"do_sample": True, "stopping_criteria": "ends_at_seven"},
    ],
    ids=str,
)
def test_generate_counts_what_is_fed_back(model, labels, how):
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model, labels=labels)
    torch.manual_seed(1)
    criteria = [ends_at_seven] if "stopping_criteria" in how else []
    with probe:
        output = model.generate(**inputs, max_new_tokens=12, **{**how, "stopping_criteria": criteria})
    output = output if torch.is_tensor(output) else output.sequences
    repeats = how.get("num_return_sequences", 1)
    inputs["attention_mask"] = inputs["attention_mask"].repeat_interleave(repeats, dim=0)
    sequences = fed_back(output, inputs, ends=(EOS, 7) if criteria else (EOS,))
    assert_same(probe, alone(model, sequences, labels))


def ends_at_seven(input_ids, scores, **_):
    return input_ids[:, -1] == 7


def test_some_sequences_end_before_others(model):
    """The test above is worth something: rows of the batch end at different times."""
    torch.manual_seed(1)
    inputs = left_padded(prompts(9, 4, 7, 5, 6, 8))
    probe = SoftEntropyProbe(model)
    with probe:
        output = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=3.0)
    sequences = fed_back(output, inputs)
    assert len({len(s) - n for s, n in zip(sequences, (9, 4, 7, 5, 6, 8), strict=True)}) > 2
    assert_same(probe, alone(model, sequences, ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_generate_without_a_cache_feeds_everything_again(model, labels):
    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=labels)
    with probe:
        output = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
    n = inputs["input_ids"].shape[1]
    starts = (~inputs["attention_mask"].bool()).sum(dim=1).tolist()
    sequences = [row[start : n + k] for row, start in zip(output, starts, strict=True) for k in range(5)]
    assert_same(probe, alone(model, sequences, labels))


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_rejected_drafts_do_not_count(model, labels):
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight += 0.7 * torch.randn(assistant.lm_head.weight.shape)
    (prompt,) = prompts(9)
    inputs = {"input_ids": prompt[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    fed = []
    probe = SoftEntropyProbe(model, labels=labels)
    with probe:
        watch = model.model.embed_tokens.register_forward_pre_hook(lambda m, a: fed.append(a[0].numel()))
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, assistant_model=assistant)
        watch.remove()
    (sequence,) = fed_back(output, inputs)
    assert sum(fed) > len(sequence)  # some drafts were rejected
    assert_same(probe, alone(model, [sequence], labels))
    assert probe.state_dict()["tokens"] == len(sequence)


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_drafts_of_the_model_s_own_first_layers_do_not_count(model, labels):
    (prompt,) = prompts(9)
    inputs = {"input_ids": prompt[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    probe = SoftEntropyProbe(model, labels=labels)
    with probe:
        output = model.generate(
            **inputs, max_new_tokens=20, do_sample=False, suppress_tokens=[EOS], assistant_early_exit=1
        )
    assert output.shape[1] == 29
    assert_same(probe, alone(model, fed_back(output, inputs), labels))


def test_continuous_batching_is_refused(model):
    """generate_batch takes half a minute to start, so only what it gives to the model is given here."""
    with pytest.raises(ProbeError, match=r"use model\.generate"), SoftEntropyProbe(model, labels=()), torch.no_grad():
        model(torch.stack(prompts(9)), use_cache=False, read_index=[torch.zeros(0, dtype=torch.long)])


def test_a_prompt_of_embeddings(model):
    inputs = left_padded(prompts(9, 4, 7))
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    probe = SoftEntropyProbe(model, labels=())
    with probe:
        output = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=6)
    output = torch.cat([inputs["input_ids"], output], dim=1)
    assert_same(probe, alone(model, fed_back(output, inputs), ()))
    with pytest.raises(ProbeError, match=r"fed no input_ids.*probe\.labelled"), SoftEntropyProbe(model):
        model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=6)


def test_prompt_lookup(model):
    text = prompts(6)[0].repeat(4)
    inputs = {"input_ids": text[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    probe = SoftEntropyProbe(model)
    with probe:
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert_same(probe, alone(model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize("do_sample", [False, True])
def test_beams(model, do_sample):
    """Each beam's tokens are fed as they stood when they were fed, whatever became of the beam."""
    inputs = left_padded(prompts(9, 4, 7))
    histories = []

    def note(original, input_ids, *args, **kwargs):
        histories.append((input_ids.clone(), kwargs["attention_mask"].clone()))
        return original(input_ids, *args, **kwargs)

    probe = SoftEntropyProbe(model, labels=["input_bigram"])
    every = SoftEntropyProbe(model, labels=())
    once = SoftEntropyProbe(model, labels=["input_bigram"], count="unique_prefix")
    with probe, every, once, replaced(model, "prepare_inputs_for_generation", note):
        model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=do_sample, early_stopping=True)
    first, mask = histories[0]
    sequences = [row[m.bool()] for row, m in zip(first, mask, strict=True)]
    expected, prefixes = alone(model, sequences, ["input_bigram"]), set()
    ends = []
    for ids, mask in histories:
        for row, m in zip(ids, mask, strict=True):
            ends.append(tuple(row[m.bool()].tolist()))
    n_steps = len(histories) - 1
    assert probe.positions == expected.positions + 9 * n_steps
    assert every.positions == sum(map(len, sequences)) + 9 * n_steps
    for end in ends:
        prefixes |= {end[:k] for k in range(2, len(end) + 1)}
    assert once.positions == len(prefixes)
    total = sum(position_sums(model, prefix) for prefix in prefixes)
    torch.testing.assert_close(once.sums, total, rtol=1e-4, atol=1e-4)
    steps = sum(position_sums(model, end) for end in ends[9:])
    torch.testing.assert_close(probe.sums, expected.sums + steps, rtol=1e-4, atol=1e-4)


def position_sums(model, tokens):
    """Sums of the last position of a sequence."""
    probe, without = (SoftEntropyProbe(model, labels=()) for _ in range(2))
    with probe, torch.no_grad():
        model(torch.tensor([tokens]))
    with without, without.masked((torch.arange(len(tokens)) < len(tokens) - 1)[None]), torch.no_grad():
        model(torch.tensor([tokens]))
    return probe.sums - without.sums if len(tokens) > 1 else probe.sums


def test_output_labels_of_beams_come_from_a_beam_that_goes_on(model):
    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=["output_unigram"])
    with probe:
        output = model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False)
    assert output.shape[1] > 9
    result = probe.result().to_pandas()
    assert result.value.notna().any()
    # What was fed and has no successor does not count: at least the last tokens of the beams.
    assert 3 * (8 + 3) <= probe.positions <= 3 * (13 + 2 * 7) - 6


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_a_loop_of_ones_own_with_a_cache(model, labels):
    texts = torch.stack(prompts(12, 12))
    probe = SoftEntropyProbe(model, labels=labels)
    with probe, torch.no_grad():
        cache = None
        for piece in texts.split([5, 1, 1, 3, 2], dim=1):
            cache = model(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
    assert_same(probe, alone(model, texts, labels))


def test_two_caches_in_turn_and_a_cropped_one(model):
    one, two = prompts(12, 10)
    labels = ["input_bigram", "output_bigram"]
    probe = SoftEntropyProbe(model, labels=labels)
    with probe, torch.no_grad():
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for a, b in zip(one.split(4), two.split([4, 4, 2]), strict=True):
            for piece, cache in zip((a, b), caches, strict=True):
                model(input_ids=piece[None], past_key_values=cache)
        caches[0].crop(-5)
        model(input_ids=two[None, :5], past_key_values=caches[0])
    together = alone(model, [one, two], labels)
    # Taken back after it was fed: what was counted counts, and then the new tokens do.
    assert probe.positions == together.positions + 3


def test_sequences_of_an_unknown_past_lack_the_labels_that_reach_into_it(model):
    (text,) = prompts(12)
    with torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
        probe = SoftEntropyProbe(model, labels=["input_trigram"])
        once = SoftEntropyProbe(model, labels=(), count="unique_prefix")
        with probe:
            model(input_ids=text[None, 6:], past_key_values=copy.deepcopy(cache))
        assert probe.positions == 4
        with pytest.raises(ProbeError, match="fed outside"), once:
            model(input_ids=text[None, 6:], past_key_values=copy.deepcopy(cache))


def test_generate_from_a_cache_that_was_filled_before(model):
    (text,) = prompts(12)
    inputs = {"input_ids": text[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    with torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
    probe = SoftEntropyProbe(model, labels=["input_trigram"])
    with probe:
        output = model.generate(**inputs, past_key_values=cache, max_new_tokens=6, do_sample=False)
    (sequence,) = fed_back(output, inputs)
    assert probe.positions == len(sequence) - 6


def test_unique_prefixes(model):
    shared, *answers = prompts(8, 3, 4, 3, 5)
    sequences = [torch.cat([shared, answer]) for answer in answers]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s)) for s in sequences], batch_first=True)
    probe = SoftEntropyProbe(model, labels=(), count="unique_prefix")
    with probe, torch.no_grad():
        for _ in range(2):
            model(input_ids=ids, attention_mask=mask)
        model(**left_padded(sequences))
    prefixes = {tuple(s[: k + 1].tolist()) for s in sequences for k in range(len(s))}
    assert probe.positions == len(prefixes) < sum(map(len, sequences))
    expected = sum(position_sums(model, prefix) for prefix in sorted(prefixes))
    torch.testing.assert_close(probe.sums, expected, rtol=1e-4, atol=1e-4)

    again = SoftEntropyProbe(model, labels=(), count="unique_prefix")
    again.load_state_dict(probe.state_dict())
    with again, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert again.positions == probe.positions
    with pytest.warns(UserWarning, match=f"{probe.positions} prefixes were counted by both"):
        again.merge(probe)


def test_unique_prefixes_need_a_causal_model():
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(InputError, match="causal"):
        SoftEntropyProbe(BertModel(config), labels=(), count="unique_prefix")


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_packed_texts_are_texts_of_their_own(model, labels):
    texts = prompts(7, 9, 5)
    positions = torch.cat([torch.arange(len(t)) for t in texts])[None]
    probe = SoftEntropyProbe(model, labels=labels)
    with probe, torch.no_grad():
        model(input_ids=torch.cat(texts)[None], position_ids=positions, use_cache=False)
    expected = alone(model, texts, labels)
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    flash = SoftEntropyProbe(model, labels=labels)  # whose packed rows say it in another way
    with flash, torch.no_grad():
        model(input_ids=torch.cat(texts)[None], cu_seq_lens_q=torch.tensor([0, 7, 16, 21]), use_cache=False)
    assert flash.positions == expected.positions


def test_masks_of_one_s_own_and_pauses(model):
    texts = prompts(7, 4)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(t)) for t in texts], batch_first=True)
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        with probe.paused():
            model(input_ids=torch.ones(64, 32, dtype=torch.long))
        with probe.masked(mask):
            model(input_ids=ids)
    assert_same(probe, alone(model, texts, ["input_unigram", "output_unigram"]))


def test_padding_that_nobody_tells_of_is_counted_with_a_warning(model):
    ids = torch.stack(prompts(7, 7))
    probe = SoftEntropyProbe(model, labels=())
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        model(input_ids=ids)
    ids[1, 4:] = PAD
    with warnings.catch_warnings(), probe, torch.no_grad():
        warnings.simplefilter("error")
        model(input_ids=ids, attention_mask=(ids != PAD).long())
    assert probe.positions == 14 + 11
    with pytest.warns(UserWarning, match=r"probe\.masked\(mask\)"), probe, torch.no_grad():
        model(input_ids=ids)
    assert probe.positions == 14 + 11 + 14


def test_a_mask_of_four_dimensions_is_read_on_its_diagonal(model):
    inputs = left_padded(prompts(9, 4))
    real = inputs["attention_mask"].bool()
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    allowed = (causal & real[:, None, :])[:, None]
    added = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    expected = alone(model, prompts(9, 4), ["input_unigram", "output_unigram"])
    for mask in (allowed, added):
        probe = SoftEntropyProbe(model)
        with probe, torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=mask)
        assert probe.positions == expected.positions


def test_callers_that_go_past_the_outer_module(model):
    ids = torch.stack(prompts(9))
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        model.model.forward(input_ids=ids)
        model.forward(input_ids=ids)
        model.model(ids)
    assert probe.positions == 3 * 8


def tokenizer():
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def test_a_pipeline_that_generates_in_batches(model):
    texts = prompts(9, 4, 7)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer(), device="cpu")
    probe = SoftEntropyProbe(model)
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
    probe, expected = SoftEntropyProbe(model), SoftEntropyProbe(model)
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
        probe, expected = SoftEntropyProbe(model), SoftEntropyProbe(model)
        with probe:
            embedder.encode(texts, batch_size=2, show_progress_bar=False)
        with expected, torch.no_grad():
            for text in texts:
                module.auto_model(**words(text, return_tensors="pt"))
        assert_same(probe, expected)


def test_a_pipeline_that_extracts_features(model):
    texts = prompts(9, 4, 7)
    extract = pipeline("feature-extraction", model=model.model, tokenizer=tokenizer(), device="cpu")
    probe = SoftEntropyProbe(model.model)
    with probe:
        extract([" ".join(f"w{i}" for i in text.tolist()) for text in texts], batch_size=3)
    assert_same(probe, alone(model.model, texts, ["input_unigram", "output_unigram"]))


def test_lora_generates(model):
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).eval()
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(peft_model)
    with probe:
        output = peft_model.generate(**inputs, max_new_tokens=9, do_sample=False)
    assert_same(probe, alone(peft_model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_trained_prompts_are_no_tokens(model, kind):
    peft_model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    texts = prompts(9, 9)
    ids = torch.stack(texts)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ["input_unigram", "output_unigram"]
    probe = SoftEntropyProbe(peft_model, labels=labels)
    with probe, torch.no_grad():
        peft_model(**inputs)
    assert_same(probe, alone(peft_model, texts, labels))
    assert probe.positions == 16
    probe = SoftEntropyProbe(peft_model, labels=labels)
    with probe:
        output = peft_model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert_same(probe, alone(peft_model, fed_back(output, inputs), labels))


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, eos_token_id=1, bos_token_id=2),
        Qwen3Config(
            vocab_size=30,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            layer_types=["sliding_attention", "full_attention"],
            pad_token_id=0,
            eos_token_id=1,
        ),
    ],
    ids=lambda c: c.model_type,
)
def test_other_models_generate(config):
    model = make_model(config)
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model)
    with probe:
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert_same(probe, alone(model, fed_back(output, inputs), ["input_unigram", "output_unigram"]))


def test_both_stacks_of_an_encoder_decoder_generate():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=30, **sizes, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    texts = prompts(9, 4, 7, 6)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(t), dtype=torch.long) for t in texts], batch_first=True)
    labels = ["input_unigram", "output_unigram"]
    probes = [SoftEntropyProbe(stack, labels=labels) for stack in (model.get_encoder(), model.get_decoder())]
    torch.manual_seed(8)
    with probes[0], probes[1]:
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=30, do_sample=True, temperature=3.0)
    rows = [row.tolist() for row in output]
    written = [row[: row.index(EOS)] if EOS in row else row[:-1] for row in rows]
    assert len({len(row) for row in written}) > 1
    expected = [SoftEntropyProbe(stack, labels=labels) for stack in (model.get_encoder(), model.get_decoder())]
    with expected[0], expected[1], torch.no_grad():
        for text, row in zip(texts, written, strict=True):
            model(input_ids=text[None], decoder_input_ids=torch.tensor([row]), use_cache=False)
    for probe, alone_probe in zip(probes, expected, strict=True):
        assert_same(probe, alone_probe)


def untouched(model):
    """What of a model, and of the classes that run it, a block may change."""
    seams = [GenerationMixin.generate, torch._dynamo.eval_frame._stance.stance, dict(vars(Cache))]
    for module in model.modules():
        seams.append({k: v for k, v in vars(module).items() if not k.startswith("_")})
        seams.append((len(module._forward_hooks), len(module._forward_pre_hooks)))
    return seams


def test_the_block_leaves_everything_as_it_was(model):
    before = untouched(model)
    probe = SoftEntropyProbe(model)
    with probe:
        cache = model(torch.stack(prompts(9)), use_cache=True).past_key_values
        assert any(sums.waiting for sums in probe._sums.values())
        assert untouched(model) != before
    assert untouched(model) == before
    assert not any(sums.waiting for sums in probe._sums.values())
    del cache


def test_blocks_may_end_in_any_order(model):
    before = untouched(model)
    one, two = (SoftEntropyProbe(model, labels=()) for _ in range(2))
    with torch.no_grad():
        one.__enter__()
        two.__enter__()
        model(torch.stack(prompts(9)))
        one.__exit__(None, None, None)
        model(torch.stack(prompts(9)))
        two.__exit__(None, None, None)
    assert (one.positions, two.positions) == (9, 18)
    assert untouched(model) == before


def test_generate_that_fails_leaves_everything_as_it_was(model):
    before = untouched(model)

    def fail(input_ids, scores, **_):
        if input_ids.shape[1] == 13:
            raise RuntimeError("stopped")
        return torch.zeros(len(input_ids), dtype=torch.bool)

    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=())
    with pytest.raises(RuntimeError, match="stopped"), probe:
        model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, stopping_criteria=[fail])
    assert untouched(model) == before
    assert probe.positions == 13 + 2 * 3
    with probe:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert probe.positions == 13 + 2 * 3 + 13 + 2 * 2


def test_nothing_holds_a_probe_but_its_owner(model):
    inputs = left_padded(prompts(9, 4))
    gc.collect()
    gc.disable()  # a probe's tables are large: they go at once, not when cycles are looked for
    try:
        probe = SoftEntropyProbe(model)
        with probe:
            model.generate(**inputs, max_new_tokens=5)
        parts = [weakref.ref(part) for part in (probe, probe._recorder, probe._source, probe._sums["layer.1"].tables)]
        del probe
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()


def test_what_waits_goes_with_its_cache(model):
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        output = model(torch.stack(prompts(9)), use_cache=True)
        assert all(len(sums.waiting) == 1 for sums in probe._sums.values())
        del output
        gc.collect()
        model(torch.stack(prompts(9)), use_cache=False)
        assert not any(sums.waiting for sums in probe._sums.values())


def test_a_step_that_fails_is_left_out(model):
    (text,) = prompts(12)
    probe = SoftEntropyProbe(model)

    def fail(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(ProbeError, match=r"failed after layer\.1"):
        with probe, torch.no_grad():
            cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
            for t in range(6, 9):
                model(input_ids=text[None, t : t + 1], past_key_values=cache)
            broken = model.model.layers[1].register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(input_ids=text[None, 9:10], past_key_values=copy.deepcopy(cache))
            with pytest.raises(RuntimeError, match="out of memory"):
                model(input_ids=text[None, 9:10], past_key_values=cache)
            broken.remove()
    assert not any(probe._recorder._steps.values())
    assert {sums.total[-1].item() for sums in probe._sums.values()} == {8.0}


def test_steps_are_counted_when_asked_for_and_when_their_cache_is_gone(model):
    (text,) = prompts(12)
    expected = [alone(model, [text[:n]], ["input_unigram", "output_unigram"]).positions for n in (8, 12)]
    probe = SoftEntropyProbe(model)
    with probe, torch.no_grad():
        cache = model(input_ids=text[None, :6], use_cache=True).past_key_values
        for t in range(6, 12):
            model(input_ids=text[None, t : t + 1], past_key_values=cache)
            if t == 7:
                assert probe.positions == expected[0]
        del cache
        gc.collect()
        model(input_ids=torch.ones(1, 1, dtype=torch.long), use_cache=False)
        assert probe.positions == expected[1]
