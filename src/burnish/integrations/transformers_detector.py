"""Zero-shot detectors and segmenters of the transformers library, such as Grounding DINO and SAM.

Needs the extras `train` and `vision`, and weights: nothing here downloads them unless `local_files_only` is off.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.core.detector import Detection, DetectorError, Pixels

GROUNDING_DINO, SAM = "IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-base"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersDetector:
    """A core `Detector` over `AutoModelForZeroShotObjectDetection`.

    `TransformersDetector(model=GROUNDING_DINO)`

    model: a name or folder.  threshold: least confidence of a box.  device: such as "cpu" or "cuda:0".  Rates are those
    that `benchmarks/grounding_teachers.py` prints for it, or None.
    """

    model: str = GROUNDING_DINO
    threshold: float = 0.3
    device: str = "cpu"
    local_files_only: bool = True
    name: str = "transformers_detector"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    def knows(self, label: str) -> bool:
        """Any text: it is a zero-shot detector."""
        return bool(label)

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Boxes above the threshold, each with the one of `labels` that it answers to."""
        torch = _library("torch", "train")
        processor, model = self._parts()
        picture = _picture(image)
        inputs = processor(images=picture, text=[list(labels)], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        size = [(image.height_px, image.width_px)]
        if hasattr(processor, "post_process_grounded_object_detection"):
            (found,) = processor.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], threshold=self.threshold, target_sizes=size
            )
            texts = [str(text) for text in found.get("text_labels", found["labels"])]
        else:
            (found,) = processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=size)
            texts = [labels[int(index)] for index in found["labels"]]
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), texts, strict=True)
        named = ((box, score, _nearest_label(text, labels)) for box, score, text in rows)
        return [_detection(box, score, label, image) for box, score, label in named if label]

    def _parts(self) -> tuple[Any, Any]:
        if not self._loaded:
            transformers = _library("transformers", "train")
            self._loaded.extend(_load(transformers, "AutoModelForZeroShotObjectDetection", self))
        return self._loaded[0], self._loaded[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSegmenter:
    """A core `Segmenter` over a model of the SAM family, prompted with boxes.  `TransformersSegmenter(model=SAM)`"""

    model: str = SAM
    device: str = "cpu"
    local_files_only: bool = True
    name: str = "transformers_segmenter"
    version: str = "1"
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    def segment(self, image: Pixels, boxes: Sequence[Detection]) -> Sequence[Detection]:
        """The detections with the best of the model's masks, cut to their boxes."""
        if not boxes:
            return ()
        torch = _library("torch", "train")
        if not self._loaded:
            self._loaded.extend(_load(_library("transformers", "train"), "SamModel", self))
        processor, model = self._loaded
        corners = [[[item.left_px, item.top_px, item.right_px, item.bottom_px] for item in boxes]]
        inputs = processor(_picture(image), input_boxes=corners, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        masks = processor.image_processor.post_process_masks(
            outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )[0]
        best = outputs.iou_scores[0].argmax(dim=-1).cpu()
        return [_with_mask(item, masks[index, int(best[index])]) for index, item in enumerate(boxes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentedDetector:
    """A detector whose boxes a segmenter refines to masks; itself a detector."""

    detector: TransformersDetector
    segmenter: TransformersSegmenter
    name: str = "segmented_detector"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None

    def knows(self, label: str) -> bool:
        """What its detector knows."""
        return self.detector.knows(label)

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Boxes, then masks."""
        return self.segmenter.segment(image, self.detector.detect(image, labels))


def _load(transformers: Any, model_class: str, options: TransformersDetector | TransformersSegmenter) -> list[Any]:
    try:
        processor = transformers.AutoProcessor.from_pretrained(options.model, local_files_only=options.local_files_only)
        model = getattr(transformers, model_class).from_pretrained(
            options.model, local_files_only=options.local_files_only
        )
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"{options.model} cannot be loaded: {error}; download it first, or give local_files_only=False"
        ) from error
    return [processor, model.eval().to(options.device)]


def _detection(box: Sequence[float], score: float, label: str, image: Pixels) -> Detection:
    left, top, right, bottom = box
    return Detection(
        label=label,
        left_px=max(0.0, left),
        top_px=max(0.0, top),
        right_px=min(float(image.width_px), right),
        bottom_px=min(float(image.height_px), bottom),
        confidence=min(1.0, max(0.0, score)),
    )


def _nearest_label(text: str, labels: Sequence[str]) -> str:
    """The label that a detector's words are, or are part of; "" for none, since it may answer to pieces of the prompt.

    >>> _nearest_label("a red dog", ["dog", "cat"]), _nearest_label("tree", ["dog"])
    ('dog', '')
    """
    if text in labels:
        return text
    words = set(text.split())
    found = [label for label in labels if set(label.split()) <= words or words <= set(label.split())]
    return max(found, key=len) if found and words else ""


def _with_mask(item: Detection, mask: Any) -> Detection:
    left, top = math.floor(item.left_px), math.floor(item.top_px)
    cut = mask[top : math.ceil(item.bottom_px), left : math.ceil(item.right_px)]
    return replace(item, mask=cut.to(dtype=_library("torch", "train").uint8).contiguous().numpy().tobytes())


def _picture(image: Pixels) -> Any:
    return _library("PIL.Image", "vision").frombytes("RGB", (image.width_px, image.height_px), image.rgb)


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DetectorError(f"this detector needs {name}: pip install 'burnish[{extra}]'") from error
