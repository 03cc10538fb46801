"""Token rows that were made otherwise are not found again."""

import pytest
from axolotl.utils.dict import DictDefault
from conftest import CHATML, make_small_tokenizer

from pair_pm.prepared_rows import digest_rows, separate_prepared_rows
from pair_pm.tokens import PromptEncoder

ENCODER = PromptEncoder(make_small_tokenizer())


@pytest.fixture
def dataset(tmp_path) -> dict:
    (tmp_path / "pairs.jsonl").write_text("one")
    return {"path": str(tmp_path / "pairs.jsonl"), "type": "pair_pm.pair_rows"}


def test_another_chat_template_tokenizer_or_content_under_the_same_names_is_another_digest(dataset, tmp_path):
    digests = {digest_rows(ENCODER, [dataset])}
    digests.add(
        digest_rows(PromptEncoder(make_small_tokenizer(CHATML.replace("<|im_end|>", "<|im_end|>!"))), [dataset])
    )
    digests.add(digest_rows(PromptEncoder(make_small_tokenizer(split="llama3")), [dataset]))
    grown = make_small_tokenizer()
    grown.add_tokens(["photosynthesis"])  # which no probe prompt holds
    digests.add(digest_rows(PromptEncoder(grown), [dataset]))
    digests.add(digest_rows(ENCODER, [dataset], eval_sequence_len=100))
    digests.add(digest_rows(ENCODER, [dataset | {"type": "pair_pm.both_orders"}]))
    (tmp_path / "pairs.jsonl").write_text("two")
    digests.add(digest_rows(ENCODER, [dataset]))
    assert len(digests) == 7


def test_the_same_content_has_the_same_digest_and_a_hub_name_counts_by_name(dataset):
    assert digest_rows(ENCODER, [dataset]) == digest_rows(PromptEncoder(make_small_tokenizer()), [dict(dataset)])
    assert digest_rows(ENCODER, [{"path": "some/dataset"}]) != digest_rows(ENCODER, [{"path": "some/other"}])


@pytest.mark.parametrize("named", [str, lambda path: [str(path)]])
def test_named_data_files_count_by_their_content(tmp_path, named):
    (tmp_path / "part.jsonl").write_text("one")
    stanza = {"path": "json", "data_files": named(tmp_path / "part.jsonl")}
    before = digest_rows(ENCODER, [stanza])
    (tmp_path / "part.jsonl").write_text("two")
    assert digest_rows(ENCODER, [stanza]) != before


def test_a_folder_counts_by_its_files(tmp_path):
    (tmp_path / "folder/deeper").mkdir(parents=True)
    (tmp_path / "folder/deeper/data.arrow").write_text("one")
    before = digest_rows(ENCODER, [{"path": str(tmp_path / "folder")}])
    (tmp_path / "folder/deeper/data.arrow").write_text("two")
    assert digest_rows(ENCODER, [{"path": str(tmp_path / "folder")}]) != before


def test_rows_that_others_left_are_named_and_not_used(dataset, tmp_path, plugin_log):
    cfg = DictDefault(dataset_prepared_path=str(tmp_path / "prepared"), datasets=[dataset])
    separate_prepared_rows(cfg, ENCODER)
    first = cfg.dataset_prepared_path
    assert not plugin_log
    (tmp_path / "prepared" / first.rsplit("/", 1)[1]).mkdir(parents=True)
    (tmp_path / "pairs.jsonl").write_text("two")
    cfg.dataset_prepared_path = str(tmp_path / "prepared")
    separate_prepared_rows(cfg, ENCODER)
    assert cfg.dataset_prepared_path != first
    (record,) = plugin_log
    assert "are not used" in record.getMessage()
