"""The quickstart's base model: a tiny Llama, pretrained for some seconds as a language model on the conversations.

Pretraining is what makes it a base model: predicting the words of good answers teaches it to look for the words of
the question, and whoever can do that soon learns which of two answers is on topic. From random weights the label's
one token a row teaches the same only after thousands of steps, or not at all.
"""

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

VOCAB_SIZE = 2048
RESERVED_TOKENS = 4
PRETRAINING_STEPS = 600
BATCH_ROWS = 16
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 20
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(RESERVED_TOKENS)),
)

# Llama-3's: digits in threes, contractions apart, newlines kept with the punctuation before them.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE, more_special_tokens: Sequence[str] = ()):
    """Return a byte-level BPE tokenizer in the manner of Llama-3: no pad token, and no BOS added by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *more_special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer, seed: int):
    """Return a Llama with random weights in float32, small enough to train on two cores in a minute."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=3,  # heads of 32: vLLM on a CPU takes none smaller
            max_position_embeddings=1024,
            initializer_range=0.05,  # at the usual 0.02 so few steps do not tell the words apart
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype="float32",
        )
    )


def pretrain(model, sequences: Sequence[list[int]], seed: int, steps: int = PRETRAINING_STEPS) -> None:
    """Train the model in place to predict the next token of the sequences."""
    import torch
    from tqdm import trange

    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    for step in trange(steps, unit=" steps", desc="pretraining the base model", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        batch = [torch.tensor(ids) for ids in draw.sample(sequences, BATCH_ROWS)]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
        model(input_ids=ids, labels=labels).loss.backward()  # padding on the right is seen by no real token
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _learning_rate(step: int, steps: int) -> float:
    """Return a cosine from the peak to a tenth of it, after a short warm-up."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (0.1 + 0.9 * cosine)


def write_base_model(rows: Sequence[dict], folder: Path, seed: int) -> None:
    """Train the tokenizer and the model on the conversations of the rows, and save both."""
    tokenizer = train_tokenizer(_prompt_text(row) for row in rows)
    texts = [tokenizer.apply_chat_template(row["chosen"], tokenize=False) for row in rows]
    model = build_model(tokenizer, seed)
    pretrain(model, tokenizer(texts, add_special_tokens=False)["input_ids"], seed)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _prompt_text(row: dict) -> str:
    """Return the row as a judge will read it, so that the tokenizer knows the format's own words too."""
    from pair_pm.prompt import render_context, render_prompt

    chosen, rejected = (row[side][-1]["content"] for side in ("chosen", "rejected"))
    prompt = render_prompt(render_context(row["chosen"][:-1]), chosen, rejected)
    return f"user\n\n{prompt}assistant\n\nA"
