"""Random causal LMs of a few thousand parameters, one for each architecture that matters, in memory or on disk."""

from pathlib import Path

from conftest import make_small_tokenizer

# Llama-3's template as it was for one day in April 2024, and as the published training forced it: the assistant's
# header always stands at the end, asked for or not.
ALWAYS_HEADER = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
    "m.content | trim + '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
LLAMA3_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# A wide initial spread, so that the verdicts of an untrained model differ from prompt to prompt.
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}


def _make_config(family: str, **overrides):
    import transformers

    makers = {
        "llama": (transformers.LlamaConfig, {}),
        "gemma": (transformers.GemmaConfig, {}),
        # Small caps, so that a forgotten one shows; a window shorter than any prompt, in every other layer.
        "gemma2": (
            transformers.Gemma2Config,
            {
                "final_logit_softcapping": 2.0,
                "attn_logit_softcapping": 1.5,
                "query_pre_attn_scalar": 8,
                "sliding_window": 16,
            },
        ),
        "gemma3": (
            transformers.Gemma3TextConfig,
            {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
        ),
        "mistral": (transformers.MistralConfig, {"sliding_window": 16}),
        "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "output_router_logits": True}),
        "qwen2": (transformers.Qwen2Config, {}),
        "qwen3": (transformers.Qwen3Config, {}),
        "gpt2": (transformers.GPT2Config, {}),  # absolute positions
    }
    config_class, extra = makers[family]
    return config_class(**{**_SHAPE, **extra, **overrides})


FAMILIES = ("llama", "gemma", "gemma2", "mistral", "qwen2", "qwen3", "gpt2")


def make_tiny_model(family: str = "llama", tokenizer=None, *, seed: int = 0, **overrides):
    """Return a random causal LM in evaluation mode, its vocabulary the tokenizer's."""
    import torch
    import transformers

    tokenizer = tokenizer or make_small_tokenizer()
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = _make_config(family, **{"vocab_size": len(tokenizer), **special_ids, **overrides})
    torch.manual_seed(seed)
    # As `load_model` does: SDPA would leave Gemma-2's attention cap out.
    attention = "eager" if family == "gemma2" else "sdpa"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def save_tiny_checkpoint(folder: Path, family: str = "llama", tokenizer=None, **overrides) -> Path:
    """Write such a model and its tokenizer as a checkpoint, and return the folder."""
    tokenizer = tokenizer or make_small_tokenizer()
    make_tiny_model(family, tokenizer, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
