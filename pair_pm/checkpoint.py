"""Checkpoints on disk or on the hub: load one to score with, prepare a base model to train from."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pair_pm.errors import CheckpointError, ConfigError, MissingPathError, OutputExistsError, TemplateError
from pair_pm.tokens import (
    PROBE_PROMPTS,
    PromptEncoder,
    dated_formats,
    freeze_date,
    refuse_forgeable_text,
    require_chat_template,
)

logger = logging.getLogger(__name__)

# Reserved tokens that no training text holds, in the order they are preferred as padding: Llama-3.1 and later name
# one, others have a numbered range of which the first is taken.
_NAMED_PADS = ("<|finetune_right_pad_id|>", "<|finetune_right_pad|>", "<pad>", "[PAD]", "<|pad|>")
_NUMBERED_PADS = ("<|reserved_special_token_{}|>", "<unused{}>", "<|dummy_{}|>", "<SPECIAL_{}>", "[control_{}]")
_ADDED_PAD = "<|pad|>"
_LOGITS_TOLERANCE = 1e-5
_LONGEST_REASON = 400


# ---- loading --------------------------------------------------------------------------------------------------------


def load_tokenizer(name: str):
    """Return the tokenizer of a folder or hub name.

    Raises:
        MissingPathError: there is no such folder, or the hub does not have it or cannot be reached.
    """
    from transformers import AutoTokenizer

    with _explained(name, "a tokenizer"):
        return AutoTokenizer.from_pretrained(name)


def load_model(name: str, *, adapter: str | None = None, device: str | None = None, dtype: str | None = None,
               attn_implementation: str | None = None):  # fmt: skip
    """Return a causal LM in evaluation mode, its adapter merged.

    Args:
        name: Folder or hub name.
        adapter: Folder or hub name of a PEFT adapter.
        device: Default: "cuda" where there is one, else "cpu".
        dtype: "float32", "bfloat16" or "float16". Default: the checkpoint's own on a GPU, float32 on a CPU.
        attn_implementation: As transformers names them. Default: its choice, but "eager" for a model that caps its
            attention logits (Gemma-2), because SDPA leaves the cap out without a word.
    Raises:
        MissingPathError: there is no such checkpoint.
        CheckpointError: it is no causal LM, or its weights are not whole.
        ConfigError: the device or the attention is not to be had here.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    if attn_implementation is None and getattr(config.get_text_config(), "attn_logit_softcapping", None):
        attn_implementation = "eager"
    device = _find_device(device)
    dtype = dtype or ("float32" if device.type == "cpu" else "auto")
    with _explained(name, "a causal LM"):
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name; transformers' own error names none
        )
    _refuse_partial(name, report)
    if adapter:
        from peft import PeftModel

        with _explained(adapter, "a PEFT adapter"), warnings.catch_warnings():
            # PEFT only warns, and would merge random or empty matrices.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.to(device).eval()


def _find_device(name: str | None):
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        found = str(error).splitlines()[0]
        raise ConfigError(f"device {name}: {found}; a device of this machine is required") from error


def _refuse_partial(name: str, report: dict) -> None:
    for found, keys in (
        ("are missing", sorted(report["missing_keys"])),
        ("have another shape than the config says", sorted(key for key, *_ in report["mismatched_keys"])),
    ):
        if keys:
            shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
            raise CheckpointError(f"{name}: {len(keys)} weights {found} ({shown}); a whole checkpoint is required")


def find_file(name: str, file: str) -> Path | None:
    """Return the path of one file of a folder or hub name, None where it has no such file.

    Raises:
        MissingPathError: there is no such folder.
    """
    from transformers.utils import cached_file

    with _explained(name, f"a folder that may hold {file}"):
        found = cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    return None if found is None else Path(found)


def load_config(name: str):
    """Return the configuration of a causal LM.

    Raises:
        MissingPathError: there is no such checkpoint.
        CheckpointError: its architecture has another head, such as a scalar reward model's.
    """
    from transformers import AutoConfig

    with _explained(name, "a model configuration"):
        config = AutoConfig.from_pretrained(name)
    for architecture in config.architectures or ():
        if not architecture.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")):
            raise CheckpointError(
                f"{name}: its architecture is {architecture}; a causal LM is required, because the verdict is read "
                "from its logits for A and B"
            )
    return config


@contextmanager
def _explained(name: str, required: str) -> Iterator[None]:
    """Turn what transformers raises for a missing or broken checkpoint into one clear line."""
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise MissingPathError(f"{name}: no such folder; {required} is required there")
    try:
        yield
    except ImportError as error:
        found = " ".join(str(error).split())
        raise ConfigError(f"{name}: {found}; a way to load it that is installed is required") from error
    except Exception as error:  # broken files raise nearly anything there, down to bare children of Exception
        found = " ".join(str(error).split()) or type(error).__name__
        kind = CheckpointError if path.exists() else MissingPathError
        raise kind(f"{name}: {found[:_LONGEST_REASON]}; {required} is required there") from error


# ---- preparing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """What `prepare_base_model` did.

    Attributes:
        pad_token: The token that padding uses from now on.
        pad_choice: "kept", "reserved" or "added".
        frozen_formats: The date formats that were frozen in the chat template.
        is_unchanged: Whether all files were copied as they are.
    """

    pad_token: str
    pad_choice: str
    frozen_formats: list[str]
    is_unchanged: bool

    def describe(self) -> str:
        """Return it as one line."""
        choice = {
            "kept": "has a pad token of its own already, {}",
            "reserved": "the reserved token {} is its pad token",
            "added": "ATTENTION: no reserved token is free, so {} was ADDED to the vocabulary as its pad token",
        }[self.pad_choice].format(self.pad_token)
        copied = "; nothing had to change, all files were copied through"
        frozen = f"; the date in its chat template was frozen ({', '.join(self.frozen_formats)})"
        return choice + (frozen if self.frozen_formats else "") + (copied if self.is_unchanged else "")


def prepare_base_model(name: str, output: str, *, dtype: str | None = None, pad_token: str | None = None,
                       chat_template: str | None = None, overwrite: bool = False,
                       accept_control_text: bool = False) -> Preparation:  # fmt: skip
    """Write a copy of a base model that has a pad token of its own and a chat template fit for training.

    With pad = eos, trainers mask every real end of turn; a reserved token avoids that without new embeddings.

    Args:
        name: Folder or hub name.
        output: Folder to write.
        dtype: Type of the written weights; default: the checkpoint's own.
        pad_token: Token to use instead of the one that would be chosen.
        chat_template: File with a Jinja chat template to use instead of the model's.
        overwrite: Replace a non-empty output folder.
        accept_control_text: Accept special tokens and turn marks that content can forge.
    Raises:
        OutputExistsError: the output folder is not empty.
        CheckpointError: the checkpoint is no causal LM, or the written copy does not behave as it.
        TemplateError: no chat template, labels that are not one differing token, control text that escapes.
    """
    target = Path(output).resolve()
    _check_output(target, name, overwrite)
    load_config(name)  # refuses what is no causal LM, before anything is loaded
    tokenizer = load_tokenizer(name)
    original_template = tokenizer.chat_template
    frozen_formats = _settle_template(tokenizer, chat_template)
    pad_choice = _settle_pad_token(tokenizer, pad_token)
    encoder = PromptEncoder(tokenizer)
    if not accept_control_text:
        refuse_forgeable_text(tokenizer)
    if tokenizer.pad_token_id in encoder.encode(PROBE_PROMPTS[:1])[0]:
        raise TemplateError(
            f"{name}: the chat template writes the pad token {tokenizer.pad_token!r} into every prompt; an unused one "
            "is required; name it with --pad-token"
        )
    is_unchanged = pad_choice == "kept" and tokenizer.chat_template == original_template and dtype is None
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write_copy(name, tokenizer, fresh, dtype, is_unchanged)
        fresh.chmod(0o755)  # mkdtemp makes it private
        _replace(target, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Preparation(tokenizer.pad_token, pad_choice, frozen_formats, is_unchanged)


def _check_output(target: Path, name: str, overwrite: bool) -> None:
    base = Path(name).resolve()
    # Replacing a folder that holds the base model would delete it.
    if base.exists() and (target == base or target in base.parents or base in target.parents):
        raise OutputExistsError(f"{target}: is, holds or lies in the folder of the base model; another one is required")
    if target.exists() and not target.is_dir():
        raise OutputExistsError(f"{target}: is a file; an unused folder is required")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise OutputExistsError(f"{target}: not empty; an unused folder is required; replace it with --overwrite")


def _replace(target: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `target`, which is back in its place should that fail."""
    old = fresh.with_name(f"{fresh.name}.old")
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _settle_template(tokenizer, file: str | None) -> list[str]:
    if file is not None:
        if not Path(file).is_file():
            raise MissingPathError(f"{file}: no such file; a Jinja chat template is required")
        tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    template = require_chat_template(tokenizer)
    formats = dated_formats(tokenizer)
    if formats:
        tokenizer.chat_template = freeze_date(template, formats)
    return formats


def _settle_pad_token(tokenizer, wanted: str | None) -> str:
    """Give the tokenizer a pad token that is neither eos nor bos; return "kept", "reserved" or "added"."""
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    vocabulary = tokenizer.get_vocab()
    if wanted is None:
        if tokenizer.pad_token is not None and tokenizer.pad_token not in taken:
            return "kept"
        candidates = [*_NAMED_PADS, *_first_of_each_range(vocabulary), tokenizer.unk_token]
        wanted = next((token for token in candidates if token in vocabulary and token not in taken), _ADDED_PAD)
    elif wanted in taken:
        raise TemplateError(f"--pad-token {wanted}: is the eos or bos token; a token of its own is required")
    is_reserved = wanted in vocabulary
    tokenizer.add_special_tokens({"pad_token": wanted})
    return "reserved" if is_reserved else "added"


def _first_of_each_range(vocabulary: dict[str, int]) -> Iterator[str]:
    for pattern in _NUMBERED_PADS:
        yield from (pattern.format(number) for number in range(256) if pattern.format(number) in vocabulary)


def _write_copy(name: str, tokenizer, fresh: Path, dtype: str | None, is_unchanged: bool) -> None:
    model = load_model(name, device="cpu", dtype=dtype or "auto")
    before = _probe_logits(model, tokenizer)
    if is_unchanged:
        _copy_files(name, fresh)
    else:
        rows = model.get_input_embeddings().weight.shape[0]
        needed = tokenizer.pad_token_id + 1
        if needed > rows:  # embeddings that are padded to more rows than the vocabulary are never shrunk
            logger.warning("%s: embeddings grow from %d to %d rows for the pad token", name, rows, needed)
            model.resize_token_embeddings(needed)
        for config in (model.config, model.config.get_text_config(), model.generation_config):
            config.pad_token_id = tokenizer.pad_token_id
        _allow_saving(name, model.generation_config)
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    del model
    copy, copied_tokenizer = load_model(str(fresh), device="cpu", dtype="auto"), load_tokenizer(str(fresh))
    pads = (
        copied_tokenizer.pad_token_id,
        copy.config.get_text_config().pad_token_id,
        copy.generation_config.pad_token_id,
    )
    if not is_unchanged and len(set(pads)) != 1:
        raise CheckpointError(
            f"{fresh}: pad ids of tokenizer, config and generation_config are {pads}; one is required"
        )
    difference = (_probe_logits(copy, copied_tokenizer)[:, : before.shape[1]] - before).abs().max().item()
    if not difference <= _LOGITS_TOLERANCE:  # written so that NaN fails too
        raise CheckpointError(
            f"{fresh}: logits of a probe text differ from the base model's by {difference:g}; at most "
            f"{_LOGITS_TOLERANCE:g} is required"
        )


def _allow_saving(name: str, generation_config) -> None:
    """Turn sampling on where its settings stand beside `do_sample: false`, which transformers reads but never saves."""
    try:
        generation_config.validate(strict=True)
    except ValueError as error:
        generation_config.do_sample = True
        with _explained(name, "a generation_config.json that can be saved"):
            generation_config.validate(strict=True)
        logger.warning("%s: do_sample was set in generation_config.json: %s", name, " ".join(str(error).split()))


def _copy_files(name: str, fresh: Path) -> None:
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name))
    shutil.copytree(folder, fresh, dirs_exist_ok=True)


def _probe_logits(model, tokenizer):
    """Return the logits after each token of a probe prompt, float32, shape (tokens, vocabulary)."""
    import torch

    ids = PromptEncoder(tokenizer).encode(PROBE_PROMPTS[:1])
    with torch.inference_mode():
        return model(torch.tensor(ids)).logits[0].float()
