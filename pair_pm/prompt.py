r"""The A/B format: how a conversation and two responses become one prompt. Text in, text out.

A prompt is, byte for byte,

    [CONTEXT] {context} [RESPONSE A] {response_a} [RESPONSE B] {response_b} \n

where the context of one user turn Q is ``"\n\n<turn> user\n Q\n"`` and each further turn adds
``"\n<turn> {role}\n {content}"`` before the closing newline. That is what the published chat template renders
to: Jinja drops the newline after each block tag, so the template's source is not its output.

Source: Dong et al., RLHF Workflow, arXiv:2405.07863 (the pairwise preference model).
"""

import re
from collections.abc import Mapping, Sequence

from pair_pm.errors import DataError

LABELS = ("A", "B")

# Both versions stand in every trained model's card: change one and every model trained before is refused.
PROMPT_FORMAT_VERSION = 1
CONTROL_SET_VERSION = 1

_CONTEXT_MARK, _A_MARK, _B_MARK, _END = "[CONTEXT] ", " [RESPONSE A] ", " [RESPONSE B] ", " \n"

_NAMED_ANGLE = (
    "turn",  # this format's own turn mark
    "s unk pad bos eos mask sep cls 2mass image img video audio",  # Llama-2, Mistral, Gemma, T5, LLaVA
    "start_of_turn end_of_turn start_of_image end_of_image image_soft_token audio_soft_token",  # Gemma
    "start_of_audio end_of_audio start_function_call end_function_call escape",  # Gemma 3n, FunctionGemma
    "think tool tools tool_call tool_calls tool_response tool_result co",  # Qwen, Jamba, Command R
    "BOS_TOKEN EOS_TOKEN PAD UNK CLS SEP MASK_TOKEN EOP_TOKEN",  # Cohere, Aya
    "fim_prefix fim_middle fim_suffix fim_pad file_sep repo_name gh_stars",  # code models
)
_NUMBERED_ANGLE = r"unused\d+|SPECIAL_\d+|extra_id_\d+|reserved_\d+"
_NAMED_SQUARE = (
    *("CONTEXT", "RESPONSE A", "RESPONSE B"),  # this format's own marks
    *"INST SYSTEM_PROMPT AVAILABLE_TOOLS TOOL_CALLS TOOL_RESULTS TOOL_CONTENT CALL_ID ARGS".split(),  # Mistral
    *"THINK MODEL_SETTINGS IMG IMG_BREAK IMG_END AUDIO BEGIN_AUDIO TRANSCRIBE PREFIX MIDDLE SUFFIX".split(),
    *"UNK PAD CLS SEP MASK BOS EOS gMASK sMASK".split(),  # BERT-like vocabularies, GLM
    *("multimodal", "@BOS@"),  # Gemma
)
_PLAIN_TURNS = "Instruction Input Response System User Human Assistant Question Answer".split()

# One alternative a first character. The rest is a lookahead, so overlapping marks are all found, and none of them
# admits a space after its first character, so that a broken mark is never found again: neutralise is idempotent.
_CONTROL_TEXT = re.compile(
    r"<(?="
    + "|".join(
        (
            r"\|[^\s<>\[\]|]{1,48}\|?>",  # <|im_start|>, <|eot_id|>, Gemma 4's <|turn>
            r"[^\s<>\[\]|]{1,48}\|>",  # Gemma 4's <turn|>
            r"[|｜][^\s<>|｜]{1,48}[|｜]>",  # DeepSeek's full-width <｜User｜>
            r"</?SYS>>",  # Llama-2's <<SYS>>
            rf"/?(?:{'|'.join(' '.join(_NAMED_ANGLE).split())}|{_NUMBERED_ANGLE})>",
        )
    )
    + r")|\[(?="
    + "|".join(
        (
            r"\|[^\s<>\[\]|]{1,48}\|\]",  # EXAONE's [|user|]
            rf"/?(?:{'|'.join(map(re.escape, _NAMED_SQUARE))}|control_\d+)\]",
        )
    )
    + rf")|#(?=## (?:{'|'.join(_PLAIN_TURNS)}):)"  # Alpaca and its kin
)


def neutralise(text: str) -> str:
    """Break control text so that content cannot forge the format or a model's special tokens.

    A space goes after the first character of every mark in a fixed, versioned set (`CONTROL_SET_VERSION`):
    ``<|eot_id|>`` becomes ``< |eot_id|>``, ``[RESPONSE B]`` becomes ``[ RESPONSE B]``. Everything else passes
    byte for byte. Idempotent, and independent of any tokenizer, so training and serving agree.
    """
    # Most text holds no such character at all, and `in` is far cheaper than a scan with the pattern.
    if "<" not in text and "[" not in text and "#" not in text:
        return text
    return _CONTROL_TEXT.sub(r"\g<0> ", text)


def render_context(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the context text of a conversation; contents must have been through `neutralise`."""
    return "\n" + "".join(f"\n<turn> {message['role']}\n {message['content']}" for message in messages) + "\n"


def split_context(context: str) -> list[dict[str, str]]:
    """Return the messages of a rendered context: the exact inverse of `render_context` on neutralised contents.

    Raises:
        DataError: the text is no rendered context.
    """
    before, *turns = context[1:-1].split("\n<turn> ")
    messages = []
    for turn in turns:
        role, separator, content = turn.partition("\n ")
        messages.append({"role": role, "content": content})
        before += "" if separator else turn
    if before or not messages or not (context.startswith("\n\n") and context.endswith("\n")):
        raise DataError(f"context {context[:60]!r}…: turns as render_context writes them are required")
    return messages


def render_prompt(context: str, response_a: str, response_b: str) -> str:
    """Return the whole prompt; the exact inverse is `split_prompt`."""
    return f"{_CONTEXT_MARK}{context}{_A_MARK}{response_a}{_B_MARK}{response_b}{_END}"


def split_prompt(prompt: str) -> tuple[str, str, str]:
    """Return ``(context, response_a, response_b)`` of a rendered prompt.

    Exact for every prompt whose parts went through `neutralise`, because each mark then stands in it once.

    Raises:
        DataError: the text is not such a prompt, for example because a response holds a forged mark.
    """
    counts = [prompt.count(mark.strip()) for mark in (_CONTEXT_MARK, _A_MARK, _B_MARK)]
    if counts != [1, 1, 1] or not prompt.startswith(_CONTEXT_MARK) or not prompt.endswith(_END):
        raise DataError(
            f"prompt {prompt[:60]!r}…: its marks [CONTEXT], [RESPONSE A], [RESPONSE B] stand {counts} times; "
            "each is required once, [CONTEXT] first and ' \\n' last"
        )
    context, separator_a, rest = prompt[len(_CONTEXT_MARK) : -len(_END)].partition(_A_MARK)
    response_a, separator_b, response_b = rest.partition(_B_MARK)
    if not (separator_a and separator_b):
        raise DataError(f"prompt {prompt[:60]!r}…: [RESPONSE A] and [RESPONSE B] are required in this order")
    return context, response_a, response_b
