"""A process keeps the tokenizer for checkpoints whose files say the same."""

import json
import shutil

from softh_probe.choices import Choices
from softh_probe.data.tokenizing import tokenizer_fingerprint
from softh_probe.kept import Kept
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer


def test_a_tokenizer_is_kept_for_the_same_files_and_loaded_anew_for_others(checkpoint, tmp_path):
    kept, choices = Kept(), [Choices() for _ in range(4)]
    same = shutil.copytree(checkpoint, tmp_path / "same")
    (same / "trainer_state.json").write_text('{"global_step": 7}')
    other = shutil.copytree(checkpoint, tmp_path / "other")
    stored = json.loads((other / "tokenizer.json").read_text())
    stored["model"]["vocab"] = {token: -i % 29 for token, i in stored["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(stored))

    def load(folder, n, **options):
        return load_tokenizer(resolve_model(str(folder), need_weights=False), choices=choices[n], **options)

    first = load(checkpoint, 0, kept=kept)
    assert load(same, 1, kept=kept) is first
    assert [*choices[0]] == [*choices[1]]
    changed = load(other, 2, kept=kept)
    assert changed is not first
    assert changed.get_vocab() == load(other, 3).get_vocab() != first.get_vocab()
    # Digests are of the tokenizer that is asked about.
    prints = [tokenizer_fingerprint(one, kept) for one in (first, changed, first)]
    assert prints == [tokenizer_fingerprint(one) for one in (first, changed, first)]
    assert len(set(prints)) == 2


def test_a_named_tokenizer_is_another_one_and_is_read_again_when_its_file_changes(checkpoint, tmp_path):
    kept, named = Kept(), tmp_path / "named.json"
    shutil.copyfile(checkpoint / "tokenizer.json", named)
    source = resolve_model(str(checkpoint), need_weights=False)
    own = load_tokenizer(source, kept=kept)
    first = load_tokenizer(source, tokenizer=str(named), kept=kept)
    assert first is not own
    assert load_tokenizer(source, tokenizer=str(named), kept=kept) is first
    named.write_text(named.read_text() + " ")
    assert load_tokenizer(source, tokenizer=str(named), kept=kept) is not first
