"""The length that a model is said to take is one that it takes, and the greatest one."""

from typing import Any

import pytest
import torch
import transformers

from softh_probe.models.architecture import body_of
from softh_probe.models.lengths import longest_document
from tests.helpers import architectures
from tests.helpers.architectures import build, listed

N = 40
#: Models whose config declares a length that their relative or rotary positions could exceed.
TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet", "esm", "luke", "data2vec-text", "ibert", "longformer")
OTHERS = (
    "opt",
    "gpt2",
    "bert",
    "bart",
    "biogpt",
    "openai-gpt",
    "codegen",
    "gptj",
    "ctrl",
    "xlm",
    "mpt",
    "nystromformer",
)


@pytest.fixture(autouse=True)
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = r"max_.*position|n_positions|max_seq_len|max_length|context_length|n_ctx|block_size|max_sequence_length"
    rules = [(fields + "|max_target|max_source", lambda v: min(v, N)), *architectures.RULES]
    monkeypatch.setattr(architectures, "RULES", rules)


def takes(body: Any, n_tokens: int) -> bool:
    ids = 10 + torch.arange(n_tokens)[None] % 50
    try:
        with torch.no_grad():
            body(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


def check(kind: str, model_type: str, class_name: str) -> None:
    try:
        body = body_of("here", build(kind, model_type, class_name))
    except Exception as error:
        pytest.skip(f"cannot be built or run: {error}"[:100])
    longest = longest_document(body)
    if not takes(body, 36):
        pytest.skip("does not run on token ids alone, or in windows that are longer")
    if longest is None:
        assert takes(body, 3 * N)
    else:
        assert takes(body, longest)
        # ProphetNet's encoder gives all further tokens one position.
        assert longest == N or not takes(body, longest + 1) or model_type == "prophetnet"


@pytest.mark.parametrize("model_type", TYPES + OTHERS)
def test_the_greatest_length_is_found(model_type: str) -> None:
    check(*next(entry for entry in listed() if entry[1] == model_type))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model_type", "class_name"), listed())
def test_the_greatest_length_of_every_architecture(kind: str, model_type: str, class_name: str) -> None:
    check(kind, model_type, class_name)


def test_relative_positions_have_no_end() -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64)
    assert longest_document(transformers.T5EncoderModel(config)) is None


@pytest.mark.parametrize(("pad", "longest"), [(0, 39), (1, 38), (5, 34)])
def test_positions_are_counted_from_the_padding_on(pad: int, longest: int) -> None:
    config = transformers.RobertaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        max_position_embeddings=N, pad_token_id=pad,
    )  # fmt: skip
    body = transformers.RobertaModel(config)
    assert longest_document(body) == longest
    assert takes(body.eval(), longest)
    assert not takes(body, longest + 1)


def test_positions_of_images_do_not_count() -> None:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**small, image_size=16, patch_size=8)  # 5 positions
    text = transformers.LlamaConfig(**small, vocab_size=64, max_position_embeddings=N)
    body = transformers.LlavaModel(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=1)
    )
    assert longest_document(body) == N
