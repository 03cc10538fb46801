"""The chat templates that axolotl ships, each with a small tokenizer of its family."""

from typing import NamedTuple

from conftest import make_small_tokenizer


class StandIn(NamedTuple):
    """The special tokens of the family that a template belongs to, for a small tokenizer that holds them."""

    bos: str | None
    eos: str
    marks: str = ""


_CHATML = StandIn(None, "<|im_end|>", "<|im_start|> <think> </think>")
_COHERE = StandIn(
    "<BOS_TOKEN>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
    "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
)
_DEEPSEEK = StandIn("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜> <｜Assistant｜>")
_EXAONE = StandIn("[BOS]", "[|endofturn|]", "[|system|] [|user|] [|assistant|]")
_GEMMA = StandIn("<bos>", "<eos>", "<start_of_turn> <end_of_turn>")
_GEMMA4 = StandIn("<bos>", "<turn|>", "<|turn> <|channel> <channel|>")
_LLAMA3 = StandIn("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|> <|end_header_id|>")
_MISTRAL = StandIn("<s>", "</s>", "[INST] [/INST] [AVAILABLE_TOOLS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]")
_PHI = StandIn("<s>", "<|endoftext|>", "<|system|> <|user|> <|assistant|> <|end|>")
_PLAIN = StandIn("<s>", "</s>")  # Llama-2's vocabulary: the marks of these templates are ordinary text

STAND_INS = {
    "alpaca": _PLAIN,
    "aya": _COHERE,
    "chatml": _CHATML,
    "cohere": _COHERE,
    "command_a": _COHERE,
    "command_a_rag": _COHERE,
    "command_a_tool_use": _COHERE,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "exaone": _EXAONE,
    "exaone4": _EXAONE,
    "falcon_h1": StandIn("<|begin_of_text|>", "<|im_end|>", "<|im_start|>"),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "gemma3n": _GEMMA,
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "jamba": StandIn("<|startoftext|>", "<|eom|>", "<|bom|> <|system|> <|user|> <|assistant|>"),
    "llama3": _LLAMA3,
    "llama3_2_vision": _LLAMA3,
    "llama4": StandIn("<|begin_of_text|>", "<|eot|>", "<|header_start|> <|header_end|>"),
    "llava": StandIn("<s>", "</s>", "<image>"),
    "metharme": StandIn("<s>", "</s>", "<|system|> <|user|> <|model|>"),
    "mistral_v1": _PLAIN,
    "mistral_v2v3": _MISTRAL,
    "mistral_v3_tekken": _MISTRAL,
    "mistral_v7_tekken": _MISTRAL,
    "nemotron_h": _CHATML,
    "phi_3": _PHI,
    "phi_35": _PHI,
    "phi_4": StandIn("<|endoftext|>", "<|im_end|>", "<|im_start|> <|im_sep|>"),
    "pixtral": _MISTRAL,
    "qwen2_vl": _CHATML,
    "qwen3": _CHATML,
    "qwen3_5": _CHATML,
    "qwen_25": _CHATML,
}


def make_stand_in(name: str, split: str = "gpt2"):
    """Return a small tokenizer with a shipped template and its family's special tokens."""
    from axolotl.utils.chat_templates import get_chat_template

    bos, eos, marks = STAND_INS[name]
    return make_small_tokenizer(get_chat_template(name), tuple(marks.split()), bos=bos, eos=eos, split=split)
