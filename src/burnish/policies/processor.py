"""Any image-text-to-text model of transformers with its processor: what it reads where an image stands, and what it
makes of the pixels.

The processor expands one placeholder into as many as the image takes, with whatever control tokens the family writes
around or between them; the expansion depends on the size of the image alone and is asked for once.  Where a processor
cannot be built here (some need packages for video that are not installed), its image processor and the tokenizer do,
for the families that report a grid.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor

from burnish.core.errors import ConfigError, RenderError
from burnish.core.images import SHELF, ImageShelf, ImageStore, image_header, image_part, png_bytes
from burnish.core.message import ImagePart
from burnish.policies.decoder import close_logits
from burnish.policies.marks import ImageMarks, TinyMarks
from burnish.policies.pixels import decode_image
from burnish.policies.sight import Sight, attach_sight, plain_base, sight_of

_MOST_INPUTS = 256
_PROBE_TEXT = "probe-question"
_UNUSABLE = (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """What turns images into tensors: `ImageParts(processor=LlavaProcessor(...), image_processor=..., tokenizer=...)`.

    processor: None where it could not be built; then the image processor's grid says how many tokens there are.
    """

    processor: Any
    image_processor: Any
    tokenizer: Any

    def save(self, folder: Path) -> None:
        """Write it beside a saved model, so that `load_image_parts` finds it."""
        (self.processor or self.image_processor).save_pretrained(folder)


def load_image_parts(name: str, tokenizer: Any, *, local: bool) -> ImageParts:
    """The processor of a model.  Raises ConfigError where it has none that can be used."""
    problems = []
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=local)
        if getattr(processor, "image_processor", None) is not None:
            return ImageParts(processor=processor, image_processor=processor.image_processor, tokenizer=tokenizer)
        problems.append(f"{type(processor).__name__} takes no images")
    except _UNUSABLE as error:
        problems.append(" ".join(str(error).split())[:200])
    try:
        images = AutoImageProcessor.from_pretrained(name, local_files_only=local)
    except _UNUSABLE as error:
        problems.append(" ".join(str(error).split())[:200])
        raise ConfigError(
            f"{name} is an image-text-to-text model without a usable processor ({'; '.join(problems)}); save the "
            "model's processor beside it"
        ) from error
    return ImageParts(processor=None, image_processor=images, tokenizer=tokenizer)


class ProcessorMarks:
    """The `ImageMarks` of a processor.  Raises ConfigError where the model names no image token."""

    def __init__(self, parts: ImageParts, config: Any) -> None:
        found = getattr(config, "image_token_id", None)
        found = getattr(config, "image_token_index", None) if found is None else found
        if found is None:
            raise ConfigError(f"the configuration of this {config.model_type!r} model names no image token")
        self.placeholder_id = int(found)
        self._parts = parts
        self._raw = self._template_mark() or self._configured_mark(config)
        self._expanded: dict[tuple[int, int], tuple[str, int]] = {}

    def text(self, part: ImagePart) -> str:
        return self.expand(part.width_px, part.height_px)[0]

    def tokens(self, part: ImagePart) -> int:
        return self.expand(part.width_px, part.height_px)[1]

    def expand(self, width_px: int, height_px: int) -> tuple[str, int]:
        """Text of an image of this size, and its number of placeholders."""
        size = (width_px, height_px)
        if size not in self._expanded:
            from PIL import Image

            if len(self._expanded) >= 4096:
                self._expanded.clear()
            self._expanded[size] = self._expand(Image.new("RGB", size))
        return self._expanded[size]

    def _expand(self, image: Any) -> tuple[str, int]:
        tokenizer, placeholder = self._parts.tokenizer, self.placeholder_id
        if self._parts.processor is not None:
            given = self._parts.processor(text=[self._raw], images=[image], add_special_tokens=False)
            ids = given["input_ids"][0]
            ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
            text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            return text, ids.count(placeholder)
        grid = self._parts.image_processor(images=[image], return_tensors="pt").get("image_grid_thw")
        if grid is None:
            raise RenderError("without its processor nobody says how many tokens this model makes of an image")
        count = int(grid.prod()) // int(self._parts.image_processor.merge_size) ** 2
        token = tokenizer.convert_ids_to_tokens(placeholder)
        return self._raw.replace(token, token * count), count

    def _template_mark(self) -> str:
        """What the model's own template writes for an image, "" where it shows none."""
        image, text = {"type": "image"}, {"type": "text", "text": _PROBE_TEXT}
        source = getattr(self._parts.processor, "chat_template", None) or getattr(
            self._parts.tokenizer, "chat_template", None
        )
        if not source:
            return ""
        heads = []
        for content in ([text], [image, text]):
            try:
                whole = self._parts.tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], chat_template=source, tokenize=False
                )
            except Exception:  # noqa: BLE001 - a template is somebody else's program; one that refuses has no mark
                return ""
            heads.append(str(whole).partition(_PROBE_TEXT)[0])
        mark = heads[1].removeprefix(heads[0]) if heads[1].startswith(heads[0]) else ""
        ids = self._parts.tokenizer.encode(mark, add_special_tokens=False)
        return mark if ids.count(self.placeholder_id) == 1 else ""

    def _configured_mark(self, config: Any) -> str:
        names = [getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end")]
        around = ["" if one is None else self._parts.tokenizer.convert_ids_to_tokens(one) for one in names]
        return f"{around[0]}{self._parts.tokenizer.convert_ids_to_tokens(self.placeholder_id)}{around[1]}"


class ProcessorEncoder:
    """The `ImageEncoder` of a processor; see `burnish.policies.sight` for `whole`."""

    def __init__(
        self, parts: ImageParts, marks: ProcessorMarks, config: Any, *, whole: bool, store: ImageStore = SHELF
    ) -> None:
        self.parts, self.marks, self.whole = parts, marks, whole
        self.placeholder_id = marks.placeholder_id
        video = getattr(config, "video_token_id", None)
        hidden = (self.placeholder_id, *(() if video is None else (int(video),)))
        self.hidden_ids: tuple[int, ...] = hidden if whole else ()
        self._store = store
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def tokens(self, sha256: str) -> int:
        _, width_px, height_px = image_header(self._store.get(sha256))
        return self.marks.expand(width_px, height_px)[1]

    def features(self, model: Any, images: Sequence[str]) -> list[Tensor]:
        base = plain_base(model)
        owner = base if hasattr(base, "get_image_features") else base.model
        accepted = inspect.signature(owner.get_image_features).parameters
        found = []
        for sha256 in images:
            given = {key: value for key, value in self._inputs(model, [sha256]).items() if key in accepted}
            features = owner.get_image_features(**given)
            features = getattr(features, "pooler_output", features)
            parts = list(features) if isinstance(features, (list, tuple)) else [features]
            found.append(torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]))
        return found

    def arguments(self, model: Any, ids_BT: Tensor, images: Sequence[str]) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": ids_BT}
        if not images:
            return given
        given |= self._inputs(model, images)
        if "mm_token_type_ids" in inspect.signature(plain_base(model).forward).parameters:
            given["mm_token_type_ids"] = (ids_BT == self.placeholder_id).int()
        return given

    def _inputs(self, model: Any, images: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of these images, one after another, on the model's device."""
        each = [self._one(sha256) for sha256 in images]
        weight = next(model.parameters())
        joined = {key: torch.cat([one[key] for one in each]) for key in each[0]}
        return {
            key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for key, value in joined.items()
        }

    def _one(self, sha256: str) -> dict[str, Tensor]:
        found = self._held.get(sha256)
        if found is None:
            image = decode_image(self._store.get(sha256), sha256)
            made = self.parts.image_processor(images=[image], return_tensors="pt")
            found = {key: value for key, value in made.items() if isinstance(value, Tensor)}
            self._held[sha256] = found
            if len(self._held) > _MOST_INPUTS:
                self._held.popitem(last=False)
        return found


def attach_processor(model: Any, parts: ImageParts) -> Sight:
    """Let a model see by its processor; which way its images take is measured on a small picture."""
    config = plain_base(model).config
    marks = ProcessorMarks(parts, config)
    whole = not _takes_rows(model, parts, marks)
    return attach_sight(model, ProcessorEncoder(parts, marks, config, whole=whole))


def image_marks(model: Any, tokenizer: Any) -> ImageMarks | None:
    """How a renderer shows images to this model; None for one that reads text alone."""
    sight = sight_of(model)
    if sight is None:
        return None
    if isinstance(sight.encoder, ProcessorEncoder):
        return sight.encoder.marks
    return TinyMarks(tokenizer, plain_base(model).config)


def save_image_parts(model: Any, folder: Path) -> None:
    """Write the processor of a model that has one beside its weights."""
    sight = sight_of(model)
    if sight is not None and isinstance(sight.encoder, ProcessorEncoder):
        sight.encoder.parts.save(folder)


@torch.no_grad()
def _takes_rows(model: Any, parts: ImageParts, marks: ProcessorMarks) -> bool:
    """Whether features in the places of placeholders, at plain positions, give the logits of the model's own pass."""
    shelf = ImageShelf()
    part = image_part(png_bytes(48, 32, bytes((31 * at * at) % 251 for at in range(48 * 32 * 3))), shelf)
    encoder = ProcessorEncoder(parts, marks, plain_base(model).config, whole=False, store=shelf)
    ids = parts.tokenizer.encode(marks.text(part), add_special_tokens=False)
    ids_1T = torch.tensor([[0, 1, *ids, 2, 3]], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        expected = model(**encoder.arguments(model, ids_1T, [part.sha256]), use_cache=False).logits
        features = encoder.features(model, [part.sha256])[0]
        embedded = model.get_input_embeddings()(ids_1T)
        where = (ids_1T == marks.placeholder_id)[0].nonzero().squeeze(1)
        stream = embedded.index_copy(1, where, features[None].to(embedded.dtype))
        found = model(inputs_embeds=stream, use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        # the model's code cannot be called this way: its own forward has to do
        return False
    finally:
        model.train(training)
    return close_logits(found, expected)
