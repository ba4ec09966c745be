"""Loading a policy by path or id, with every way this can fail said clearly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

from burnish.core.errors import ConfigError
from burnish.policies.processor import ImageParts, attach_processor, load_image_parts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A model and its tokenizer, ready on `device` in evaluation mode.

    Example: `load_policy("runs/shop/export")` has device cpu, dtype torch.float32.  notices: what was changed or
    assumed, one sentence each.  images: the processor of a model that sees; the model is ready to be shown images.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    notices: tuple[str, ...] = ()
    images: ImageParts | None = None


def load_policy(
    path_or_id: str | Path, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> LoadedPolicy:
    """Load a causal language model, or one that reads images and text, with its tokenizer and processor.

    path_or_id: a folder, or a model id that is fetched from the Hugging Face Hub (never with `offline`; then only what
    was fetched before is found).  device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
    dtype: "auto" (bfloat16 on a GPU that has it, else float32) or a name in `DTYPES`.

    Raises ConfigError where the model is missing, incomplete, of another kind, without a tokenizer (or processor) that
    fits, or where the device cannot do what is asked.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    name = str(path_or_id)
    config = load_config(name, offline=offline)
    local = offline or Path(name).exists()
    tokenizer = _tokenizer(name, local)
    model = _model(name, auto_class(config), precision, local)
    _require_fit(name, model, tokenizer)
    model = model.to(target).eval()
    _require_causal(name, model)
    notices = []
    images = load_images(name, model, tokenizer, local=local)
    if images is not None and images.processor is None:
        notices.append("the model's processor cannot be built here; its image processor alone is used")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        notices.append(f"the tokenizer has no padding token; {tokenizer.pad_token!r} pads (masks decide, not the id)")
    if getattr(config, "quantization_config", None) is not None:
        notices.append("the weights are quantised; only adapters can be trained on them")
    return LoadedPolicy(
        model=model, tokenizer=tokenizer, device=target, dtype=precision, notices=tuple(notices), images=images
    )


def auto_class(config: Any) -> Any:
    """The automatic class of transformers that loads this kind of model."""
    is_causal = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if is_causal else AutoModelForImageTextToText


def load_images(name: str, model: Any, tokenizer: Any, *, local: bool) -> ImageParts | None:
    """Let a model see by the processor that lies beside it; None for one of text, or that needs none."""
    if auto_class(model.config) is not AutoModelForImageTextToText:
        return None
    parts = load_image_parts(name, tokenizer, local=local)
    attach_processor(model, parts)
    return parts


def load_config(name: str, *, offline: bool = False) -> Any:
    """The configuration of a model, checked to be of a kind that `load_policy` loads; weights are not touched.

    Raises ConfigError as `load_policy` does.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name} is a file; give the folder that holds config.json and the weights")
    if path.is_dir() and not (path / "config.json").is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ConfigError(f"{name} holds no config.json (found: {found}); give the folder of a saved model")
    if not path.exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ConfigError(
            f"there is no folder {name}; give the path of a saved model or a model id such as 'Qwen/Qwen3-0.6B'"
        )
    local = offline or path.is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError, HFValidationError) as error:
        raise ConfigError(_missing(name, error, local, path.is_dir())) from error
    known = (AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping)
    if config.is_encoder_decoder or not any(type(config) in mapping for mapping in known):
        raise ConfigError(
            f"{name} is a {config.model_type!r} model, which is not a causal language model; "
            f"choose one that AutoModelForCausalLM or AutoModelForImageTextToText loads"
        )
    return config


def pick_device(device: str) -> torch.device:
    """The torch device for a name; "auto" takes a GPU where there is one.  Raises ConfigError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:<index> or mps") from error
    if picked.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (picked.index or 0) >= count:
            raise ConfigError(
                f"device {device!r} was asked for and torch sees {count} CUDA devices; use device=auto or cpu"
            )
    elif picked.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("device 'mps' was asked for and torch cannot use it here; use device=auto or cpu")
    elif picked.type != "cpu":
        raise ConfigError(f"device {device!r} is not supported; use auto, cpu, cuda, cuda:<index> or mps")
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The weights' type for a name on a device.  Raises ConfigError where the two do not go together."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if dtype == "auto":
        return torch.bfloat16 if has_bf16 else torch.float32
    if dtype not in DTYPES:
        near = get_close_matches(dtype, DTYPES, n=1)
        raise ConfigError(
            f"unknown dtype {dtype!r}; " + (f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(DTYPES)}")
        )
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype float16 is not supported on the CPU; use float32 or bfloat16")
    if dtype == "bfloat16" and device.type == "cuda" and not has_bf16:
        raise ConfigError(f"this GPU ({torch.cuda.get_device_name(device)}) has no bfloat16; use float32 or float16")
    return DTYPES[dtype]


def _missing(name: str, error: Exception, local: bool, is_folder: bool) -> str:
    reason = " ".join(str(error).split())[:300]
    if is_folder:
        return f"the config.json in {name} cannot be used: {reason}"
    if local:
        return f"{name} is no folder here and was not fetched before, and the Hub is not asked when offline"
    return f"{name} is no folder here and could not be fetched from the Hugging Face Hub ({reason}); give a local path"


def _tokenizer(name: str, local: bool) -> Any:
    # transformers makes up an empty tokenizer of the model's type where a folder holds none
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in _TOKENIZER_FILES):
        raise ConfigError(f"{name} holds no tokenizer (such as tokenizer.json); save the model's tokenizer beside it")
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"the tokenizer of {name} cannot be loaded: {reason}") from error


def _model(name: str, kind: Any, dtype: torch.dtype, local: bool) -> Any:
    """The model; a weight that is missing from the files must not be made up at random."""
    try:
        with no_progress_bar():
            model, report = kind.from_pretrained(name, dtype=dtype, local_files_only=local, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"the weights of {name} cannot be loaded: {reason}") from error
    missing, odd = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or odd:
        shown = ", ".join((missing + odd)[:3])
        raise ConfigError(
            f"{len(missing)} weights of {name} are missing and {len(odd)} have another shape ({shown}, ...); "
            f"the folder is incomplete or its config.json belongs to another model"
        )
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one while it reads or writes weights; it would break into a live display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _require_fit(name: str, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens and the model only {rows}; "
            f"they do not belong together"
        )


def _require_causal(name: str, model: Any) -> None:
    """Encoders load as causal models too; their first token sees the last, so training on them would leak."""
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=model.device) % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        first, second = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0]
    # in a causal model both rows take the same arithmetic; a few units in the last place are for batched kernels
    tolerance = 4 * torch.finfo(first.dtype).eps * float(first.abs().max())
    if float((first - second).abs().max()) > tolerance:
        raise ConfigError(f"{name} lets a token see what follows it (an encoder); choose a causal language model")
