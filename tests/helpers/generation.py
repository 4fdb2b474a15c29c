"""Small models that generate, their prompts, and references of one forward pass for each sequence."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from softh_probe import SoftEntropyProbe

LABEL_SETS = [(), ("input_unigram", "output_unigram"), ("input_trigram", "output_bigram")]
VOCABULARY, PAD, EOS = 30, 0, 1


def make_model(config=None):
    """Return a model of random weights, large enough that layers differ; a Llama of two layers by default."""
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
    """Return random token sequences of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def left_padded(texts):
    """Return a batch of sequences, padded on the left, with its mask."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), PAD)
    for row, text in zip(ids, texts, strict=True):
        row[longest - len(text) :] = text
    mask = torch.stack([torch.arange(longest) >= longest - len(text) for text in texts]).long()
    return {"input_ids": ids, "attention_mask": mask}


def alone(model, sequences, labels, **settings):
    """Measure each sequence in a forward pass of its own."""
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1, **settings)
    with probe, torch.no_grad():
        for sequence in sequences:
            model(input_ids=torch.as_tensor(sequence)[None], use_cache=False)
    return probe


def assert_same(probe, expected):
    """Compare positions, sums, and values of label sets of two probes."""
    assert probe.positions == expected.positions
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-4, atol=1e-4)
    ours, theirs = (
        p.result().to_pandas().query("metric.isin(['conditional_entropy', 'coverage'])") for p in (probe, expected)
    )
    assert ours.label_set.tolist() == theirs.label_set.tolist()
    torch.testing.assert_close(torch.tensor(ours.value.values), torch.tensor(theirs.value.values), rtol=1e-4, atol=1e-4)


def fed_back(output, inputs, ends=(EOS,)):
    """Return the tokens that generate fed to the model: each sequence without its padding and its last token."""
    sequences = []
    for row, mask in zip(output, inputs["attention_mask"], strict=True):
        prompt = row[: len(mask)][mask.bool()]
        new = row[len(mask) :].tolist()
        new = new[: next((i for i, token in enumerate(new) if token in ends), -1)]
        sequences.append(torch.cat([prompt, torch.tensor(new, dtype=torch.long)]))
    return sequences


def position_sums(model, tokens):
    """Return the sums of the last position of a sequence."""
    probe, without = (SoftEntropyProbe(model, labels=(), anchor_sets=1) for _ in range(2))
    with probe, torch.no_grad():
        model(torch.tensor([tokens]))
    with without, without.masked((torch.arange(len(tokens)) < len(tokens) - 1)[None]), torch.no_grad():
        model(torch.tensor([tokens]))
    return probe.sums - without.sums if len(tokens) > 1 else probe.sums


def tokenizer():
    """Return a tokenizer of words `w2`, `w3` and so on."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")
