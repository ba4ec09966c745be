"""Images inside a model: which tokens they are, what stands in the stream at their places.

Outside of the model tokens stay facts: an image is a run of placeholder ids, and a span beside them names it.  Inside,
each placeholder that shows an image is given a number of its own, `-2 - row`, where `row` counts the tokens of all
images that this process has seen.  Two prompts with the same ids and different images then differ in their numbers, so
that prefixes, groups and trees of samples, which compare numbers, never confuse them; and the number alone says which
feature belongs there.  A placeholder id that the policy sampled shows nothing and stays what it is.

Models that add images to a plain stream of embeddings are served by rows of features (`whole` False): they go through
the same fast paths as text.  Others (rotary positions in three dimensions, features injected into several layers) run
their own forward with everything that their processor makes of the images (`whole` True).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from burnish.core.errors import RenderError
from burnish.core.images import SHELF, ImageSpan, ImageStore
from burnish.policies.pixels import PixelCache
from burnish.policies.vision_model import VisionPolicy

_FIRST = 2
"""Token 0 of the first image is -2: -1 stands for "no token" where rows are packed."""

HIDDEN_LOGIT = -1e9

FeatureSource = Callable[[Sequence[str]], list[Tensor]]
"""Images by hash to their features [tokens, hidden]."""


class ImageEncoder(Protocol):
    """What a family of models makes of images."""

    placeholder_id: int
    whole: bool
    hidden_ids: tuple[int, ...]

    def tokens(self, sha256: str) -> int:
        """How many placeholders an image takes."""
        ...

    def features(self, model: Any, images: Sequence[str]) -> list[Tensor]:
        """Features [tokens, hidden] of each image."""
        ...

    def arguments(self, model: Any, ids_BT: Tensor, images: Sequence[str]) -> dict[str, Any]:
        """Of a whole forward pass: placeholders [B, T], and the images in their order."""
        ...


class TinyEncoder:
    """Of a `VisionPolicy`."""

    whole = False
    hidden_ids: tuple[int, ...] = ()

    def __init__(self, config: Any, store: ImageStore = SHELF) -> None:
        self.placeholder_id = int(config.image_token_id)
        self._pixels = PixelCache(store, patch_px=config.patch_px, max_tokens=config.max_image_tokens)

    def tokens(self, sha256: str) -> int:
        return self._pixels.plan(sha256).tokens

    def inputs(self, model: Any, images: Sequence[str]) -> list[Tensor]:
        """Pixels [3, H, W] of each image, scaled to about [-2, 2]."""
        weight = next(model.parameters())
        return [
            torch.from_numpy(self._pixels.pixels(sha256)).to(weight.device, weight.dtype).div_(63.75).sub_(2.0)
            for sha256 in images
        ]

    def features(self, model: Any, images: Sequence[str]) -> list[Tensor]:
        return plain_base(model).image_features(self.inputs(model, images))  # type: ignore[no-any-return]

    def arguments(self, model: Any, ids_BT: Tensor, images: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"input_ids": ids_BT}
        return found | ({"pixel_values": self.inputs(model, images)} if images else {})


class Sight:
    """The images of one model in one process.  `sight_of(model)` finds it; None for a model of text alone."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._starts: list[int] = []
        self._ends = np.zeros(0, np.int64)
        self._total = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Sight:
        """A copy of a model numbers images as the model does: both are given the same batches."""
        return self

    def keyed(self, ids: npt.NDArray[np.int32], spans: Sequence[ImageSpan]) -> npt.NDArray[np.int32]:
        """The ids with every image's placeholders numbered.  Raises RenderError where their count is not the image's.

        Example: ids [7, 99, 99, 8] with image "a" of two tokens in [1, 3) become [7, -2, -3, 8].
        """
        if not spans:
            return ids
        keyed = ids.copy()
        for span in spans:
            places = span.start + np.flatnonzero(ids[span.start : span.end] == self.encoder.placeholder_id)
            number = self._number(span.sha256)
            tokens = self.encoder.tokens(span.sha256)
            if len(places) != tokens:
                raise RenderError(
                    f"image {span.sha256[:12]} stands at {len(places)} placeholders and this model makes {tokens} "
                    "tokens of it; the prompt was rendered for another model or token budget"
                )
            keyed[places] = -_FIRST - self._starts[number] - np.arange(tokens, dtype=np.int32)
        return keyed

    def embed(self, ids: Tensor, embedded: Tensor, features: FeatureSource) -> Tensor:
        """`embedded` [..., hidden] of `ids` [...] (numbers below 0 read as id 0) with images in their places."""
        flat = ids.reshape(-1)
        places = (flat < 0).nonzero().squeeze(1)
        if not len(places):
            return embedded
        rows = (-_FIRST - flat.index_select(0, places)).cpu().numpy()
        numbers = np.searchsorted(self._ends, rows, side="right")
        present, which = np.unique(numbers, return_inverse=True)
        parts = features([self._names[number] for number in present])
        firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        offsets = rows - np.asarray([self._starts[number] for number in present])[which] + firsts[which]
        shown = torch.cat(parts).to(embedded.dtype).index_select(0, torch.from_numpy(offsets).to(embedded.device))
        stream = embedded.reshape(len(flat), -1).index_copy(0, places, shown)
        return stream.view(embedded.shape)

    def inputs(self, model: Any, ids_BT: Tensor, features: FeatureSource | None = None) -> dict[str, Any]:
        """Arguments of the model's own forward for numbered ids [B, T]."""
        if not bool((ids_BT < 0).any()):
            return {"input_ids": ids_BT}
        if not self.encoder.whole:
            source = features or (lambda images: self.encoder.features(model, images))
            embedded = model.get_input_embeddings()(ids_BT.clamp(min=0))
            return {"inputs_embeds": self.embed(ids_BT, embedded, source)}
        plain, images = self._plain(ids_BT)
        return self.encoder.arguments(model, plain, images)

    def hide(self, logits: Tensor) -> Tensor:
        """Logits without the placeholders where sampling one would break the model's own forward."""
        if not self.encoder.hidden_ids:
            return logits
        return logits.index_fill(-1, torch.tensor(self.encoder.hidden_ids, device=logits.device), HIDDEN_LOGIT)

    def _plain(self, ids_BT: Tensor) -> tuple[Tensor, list[str]]:
        """Placeholders for numbers, and the images in order; what is left of a cut image becomes id 0."""
        keyed = ids_BT.cpu().numpy()
        plain, images = keyed.copy(), []
        for row, ids in enumerate(keyed):
            places = np.flatnonzero(ids < 0)
            rows = -_FIRST - ids[places]
            numbers = np.searchsorted(self._ends, rows, side="right")
            at = 0
            while at < len(places):
                number = int(numbers[at])
                tokens = int(self._ends[number]) - self._starts[number]
                end = at + tokens
                if rows[at] == self._starts[number] and end <= len(places) and rows[end - 1] == rows[at] + tokens - 1:
                    plain[row, places[at:end]] = self.encoder.placeholder_id
                    images.append(self._names[number])
                    at = end
                else:
                    plain[row, places[at]] = 0
                    at += 1
        return torch.from_numpy(plain).to(ids_BT.device), images

    def _number(self, sha256: str) -> int:
        number = self._numbers.get(sha256)
        if number is None:
            number = self._numbers[sha256] = len(self._names)
            self._names.append(sha256)
            self._starts.append(self._total)
            self._total += self.encoder.tokens(sha256)
            self._ends = np.append(self._ends, self._total)
        return number


class HeldFeatures:
    """Features under one state of the weights, each image encoded once: a `FeatureSource` for sampling."""

    def __init__(self, model: Any, sight: Sight) -> None:
        self._model, self._sight = model, sight
        self._held: dict[str, Tensor] = {}

    def forget(self) -> None:
        """The weights have changed."""
        self._held.clear()

    def __call__(self, images: Sequence[str]) -> list[Tensor]:
        missing = [sha256 for sha256 in images if sha256 not in self._held]
        if missing:
            self._held |= dict(zip(missing, self._sight.encoder.features(self._model, missing), strict=True))
        return [self._held[sha256] for sha256 in images]


_ATTRIBUTE = "_burnish_sight"


def plain_base(model: Any) -> Any:
    """The model below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attach_sight(model: Any, encoder: ImageEncoder) -> Sight:
    """Let a model see by `encoder` from now on."""
    sight = Sight(encoder)
    plain_base(model).__dict__[_ATTRIBUTE] = sight
    return sight


def sight_of(model: Any) -> Sight | None:
    """How a model sees; None for one that reads text alone."""
    base = plain_base(model)
    found: Sight | None = base.__dict__.get(_ATTRIBUTE)
    if found is None and isinstance(base, VisionPolicy):
        found = attach_sight(base, TinyEncoder(base.config))
    return found


def share_sight(model: Any, other: Any) -> None:
    """Let `other` number images as `model` does, since both will be given the same batches."""
    sight = sight_of(model)
    if sight is not None and other is not model:
        plain_base(other).__dict__[_ATTRIBUTE] = sight


def number_images(
    model: Any, ids: npt.NDArray[np.int32], spans: Sequence[ImageSpan], *, where: str
) -> npt.NDArray[np.int32]:
    """`Sight.keyed` for a model that may not see.  Raises RenderError for images that it cannot."""
    if not spans:
        return ids
    sight = sight_of(model)
    if sight is None:
        raise RenderError(f"{where} holds {len(spans)} images and {type(plain_base(model)).__name__} reads text alone")
    return sight.keyed(ids, spans)
