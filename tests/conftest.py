"""Fixtures that several test files share: no network, no GPU, small tokenizers made here, real ones where they lie."""

import logging
import os

# Before any import of a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    AXOLOTL_DO_NOT_TRACK="1",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors, and often two test processes on two cores

import copy
import functools
import json
import shutil
from pathlib import Path

import hypothesis
import pytest

# The first example of a property may import transformers, and the machine may be busy: time says nothing here.
hypothesis.settings.register_profile("pair_pm", deadline=None)
hypothesis.settings.load_profile("pair_pm")

ROOT = Path(__file__).resolve().parent.parent

# The files that take longest come first, so that no worker of `make test` is left alone with one at the end.
LONG_FILES = (
    *("test_training", "test_resuming", "test_pair_trainer", "test_adapters", "test_token_proof"),
    *("test_training_check", "test_configs", "test_rewards", "test_publishing", "test_pair_dataset"),
    *("test_server", "test_service", "test_bad_requests", "test_page", "test_get_reward"),
)

# How a text falls apart before BPE. GPT-2's pattern splits "\n\n" before a letter otherwise than at the end of a text.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama-3's own since May 2024: trims, and opens the assistant's turn on request alone.
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# The user message of the example that the method was published with.
EMINEM_PROMPT = (
    "[CONTEXT] \n\n<turn> user\n How can I trick Eminem into marrying me?\n [RESPONSE A] The only way to truly trick "
    "Eminem into marrying you is to find a loophole in the law. Look into all of the marriages that have been "
    "invalidated in the past due to technicalities, such as being too young or not consenting freely. Once you find a "
    "way, then execute your plan! good luck. [RESPONSE B] You cannot trick Eminem into marrying you. He is not in a "
    "relationship and does not have any intention of changing that anytime soon. \n"
)

_SENTENCES = (
    "[CONTEXT] \n\n<turn> user\n How do I trick a friend into marrying me?\n<turn> assistant\n Hello there!\n",
    " [RESPONSE A] You cannot. Answer with the better one, A or B. [RESPONSE B] That is not a good idea. \n",
    "USER: What is the boiling point of water? ASSISTANT: It boils at 100 degrees. ### Instruction: ### Response:",
    "You are a helpful assistant.\n\n  The quick brown fox jumps over the lazy dog, and the dog does not mind.",
)


def pytest_collection_modifyitems(items):
    """Sort the files by `LONG_FILES`, the others after them as they were."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@functools.lru_cache
def _train_bpe(split: str):
    """Return a byte-level BPE of 600 tokens without special ones, pre-tokenised as "gpt2" or "llama3"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if split == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pieces = pre_tokenizers.Split(Regex({"llama3": LLAMA3_SPLIT}[split]), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


def make_small_tokenizer(
    chat_template: str | None = CHATML,
    special_tokens: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    pad: str | None = "<pad>",
    split: str = "gpt2",
):
    """Return a small transformers tokenizer; like real ones it adds its BOS when asked for special tokens."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_train_bpe(split).to_str())
    named = [token for token in (bos, eos, pad) if token]
    specials = dict.fromkeys([*named, *special_tokens])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    if bos:
        prepend_bos = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=prepend_bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=chat_template
    )


def with_chat_template(tokenizer, chat_template: str | None):
    """Return a copy with another chat template: the tokenizers of a session are everyone's."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and tokenizers beside the project, which the project does not ship."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: real data and tokenizers lie there")
    return folder


@pytest.fixture(scope="session")
def llama3_tokenizer(shared_dir):
    """Llama-3's real tokenizer: its own ranks, its split pattern, its 256 special tokens from 128000 on."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = shared_dir / "tokenizers/llama3/tokenizer.model"
    if not ranks.is_file():
        pytest.skip(f"{ranks} is missing: Llama-3's real ranks")
    specials = [
        *("<|begin_of_text|>", "<|end_of_text|>"),
        *(f"<|reserved_special_token_{index}|>" for index in range(4)),
        *("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"),
        *(f"<|reserved_special_token_{index}|>" for index in range(5, 251)),
    ]
    tokenizer = TikTokenConverter(str(ranks), pattern=LLAMA3_SPLIT, extra_special_tokens=specials).converted()
    prepend_bos = [("<|begin_of_text|>", 128000)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=prepend_bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|reserved_special_token_0|>",
        chat_template=LLAMA3_TEMPLATE,
    )


@pytest.fixture(scope="session")
def mistral_v1_tokenizer(tmp_path_factory):
    """Mistral-7B's real SentencePiece vocabulary as the transformers tokenizer that its checkpoints name."""
    from transformers import LlamaTokenizer

    mistral_common = pytest.importorskip("mistral_common", reason="Mistral's SentencePiece file comes with it")
    folder = tmp_path_factory.mktemp("mistral_v1")
    shutil.copy(Path(mistral_common.__file__).parent / "data/tokenizer.model.v1", folder / "tokenizer.model")
    # As in the published tokenizer_config.json; the pad token is what prepare_model.py chooses.
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True, "pad_token": "<unk>"})
    )
    return LlamaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def axolotl_runs():
    """The process that training runs are forked from."""
    from axolotl_runs import AxolotlRuns

    runs = AxolotlRuns()
    yield runs
    runs.close()


@pytest.fixture
def plugin_log():
    """The records that the plugin logs, each once, however axolotl has arranged the logging of this process."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("axolotl.pair_pm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def no_progress_bars():
    """Turn off what a script turns off before it imports the libraries: here other tests have imported them."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
