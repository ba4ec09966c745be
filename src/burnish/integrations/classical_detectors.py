"""Detectors without downloaded weights: faces by a cascade, bright blobs by watershed, digits by nearest neighbours.

They run offline; faces and blobs by scikit-image.  Needs the extra `vision`.
`benchmarks/grounding_teachers.py` measures them on photographs with truth from elsewhere.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from burnish.core.detector import Detection, DetectorError, Pixels

_LUMA = (0.299, 0.587, 0.114)


def grey(image: Pixels) -> npt.NDArray[np.float64]:
    """Brightness of each pixel in [0, 255], (height, width)."""
    rgb = np.frombuffer(image.rgb, dtype=np.uint8).reshape(image.height_px, image.width_px, 3)
    weighted: npt.NDArray[np.float64] = rgb @ np.asarray(_LUMA)
    return weighted


def pixels_of(array: npt.NDArray[np.uint8]) -> Pixels:
    """An image of a grey (height, width) or RGB (height, width, 3) array of bytes."""
    rgb = array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
    return Pixels(width_px=rgb.shape[1], height_px=rgb.shape[0], rgb=np.ascontiguousarray(rgb).tobytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceDetector:
    """Frontal faces by the LBP cascade that scikit-image ships (Ahonen et al. 2004; Viola and Jones 2001).

    smallest_px: of the side of a face.
    """

    smallest_px: int = 40
    name: str = "lbp_faces"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None
    _made: list[Any] = field(default_factory=list, repr=False, compare=False)

    def knows(self, label: str) -> bool:
        """ "face" alone."""
        return label == "face"

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Every face; none where faces are not asked for."""
        if "face" not in labels:
            return ()
        if not self._made:
            data, feature = _skimage("data"), _skimage("feature")
            self._made.append(feature.Cascade(data.lbp_frontal_face_cascade_filename()))
        side = min(image.width_px, image.height_px)
        if side < self.smallest_px:
            return ()
        found = self._made[0].detect_multi_scale(
            img=grey(image).astype(np.uint8),
            scale_factor=1.15,
            step_ratio=1,
            min_size=(self.smallest_px, self.smallest_px),
            max_size=(side, side),
        )
        return [
            Detection(
                label="face",
                left_px=float(box["c"]),
                top_px=float(box["r"]),
                right_px=float(box["c"] + box["width"]),
                bottom_px=float(box["r"] + box["height"]),
            )
            for box in found
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobDetector:
    """Bright things on a dark ground, by a watershed of the gradient between sure ground and sure thing.

    label: what they are called.  ground, thing: brightness in [0, 255] below and above which a pixel is sure.
    """

    label: str
    ground: float = 30.0
    thing: float = 150.0
    least_px2: int = 200
    name: str = "blobs"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None

    def knows(self, label: str) -> bool:
        """Its one label."""
        return label == self.label

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Every blob with its mask."""
        if self.label not in labels:
            return ()
        values = grey(image)
        markers = np.zeros(values.shape, dtype=np.int32)
        markers[values < self.ground] = 1
        markers[values > self.thing] = 2
        parts = _skimage("segmentation").watershed(_skimage("filters").sobel(values), markers)
        filled = ndimage.binary_fill_holes(parts == 2)
        numbered, _ = ndimage.label(filled)
        return [
            _of_mask(numbered == index, place, self.label, 1.0)
            for index, place in enumerate(ndimage.find_objects(numbered), 1)
            if int((numbered[place] == index).sum()) >= self.least_px2
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DigitDetector:
    """Bright digits on a dark ground: connected strokes, named by the nearest of known ones.

    known, known_labels: (n, 8, 8) images with values from 0 to 16 and their digits.  confidence: the share of the
    `neighbours` nearest that agree.
    """

    known: npt.NDArray[np.float64]
    known_labels: Sequence[int]
    neighbours: int = 5
    name: str = "digits"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None
    _framed_known: list[npt.NDArray[np.float64]] = field(default_factory=list, repr=False)

    def knows(self, label: str) -> bool:
        """ "digit 0" to "digit 9"."""
        return label.removeprefix("digit ") in {str(digit) for digit in range(10)} and label.startswith("digit ")

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Every digit of the labels asked for, with the confidence that it is that one."""
        values = grey(image)
        bright = ndimage.binary_closing(values > 40, iterations=2, border_value=0)
        numbered, _ = ndimage.label(bright, structure=np.ones((3, 3)))
        found: list[Detection] = []
        for index, place in enumerate(ndimage.find_objects(numbered), 1):
            mask = numbered == index
            if int(mask[place].sum()) < 20:
                continue
            votes = self._votes(values[place] * mask[place])
            found += [
                _of_mask(mask, place, f"digit {digit}", count / self.neighbours)
                for digit, count in votes.items()
                if f"digit {digit}" in labels
            ]
        return found

    def _votes(self, cut: npt.NDArray[np.float64]) -> Counter[int]:
        if not self._framed_known:
            self._framed_known.append(np.stack([_framed(image) for image in self.known]))
        distances = ((self._framed_known[0] - _framed(cut)[None]) ** 2).sum(axis=(1, 2))
        nearest = np.argsort(distances, kind="stable")[: self.neighbours]
        return Counter(int(self.known_labels[index]) for index in nearest)


def block_matching_nearer(
    left: Pixels, right: Pixels, one: tuple[int, int], other: tuple[int, int], *, furthest_px: int = 80, reach: int = 7
) -> float:
    """By how many pixels of disparity a place of a rectified stereo pair is nearer than another one.

    one, other: (x, y) in the left image.  Sums of squared differences of blocks along the row; above 0: `one` is
    nearer.
    """
    left_grey, right_grey = grey(left), grey(right)
    return _disparity(left_grey, right_grey, one, furthest_px, reach) - _disparity(
        left_grey, right_grey, other, furthest_px, reach
    )


def _disparity(
    left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], at: tuple[int, int], furthest_px: int, reach: int
) -> float:
    x, y = at
    top, bottom = max(0, y - reach), y + reach + 1
    if x - reach < 0 or x + reach >= left.shape[1] or bottom > left.shape[0]:
        raise DetectorError(f"the block around {at} leaves the image; ask for places {reach} pixels inside")
    block = left[top:bottom, x - reach : x + reach + 1]
    costs = []
    for shift in range(min(furthest_px, x - reach) + 1):
        candidate = right[top:bottom, x - reach - shift : x + reach + 1 - shift]
        difference = (block - block.mean()) - (candidate - candidate.mean())
        costs.append(float((difference**2).sum()))
    return float(np.argmin(costs))


def _of_mask(mask: npt.NDArray[np.bool_], place: tuple[slice, ...], label: str, confidence: float) -> Detection:
    rows, columns = place
    return Detection(
        label=label,
        left_px=float(columns.start),
        top_px=float(rows.start),
        right_px=float(columns.stop),
        bottom_px=float(rows.stop),
        confidence=confidence,
        mask=np.ascontiguousarray(mask[place], dtype=np.uint8).tobytes(),
    )


def _framed(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inked part, stretched to 16 x 16 by height, with unit norm."""
    rows, columns = np.nonzero(image > 0.15 * image.max())
    cut = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float64)
    scale = 16 / max(cut.shape)
    small = ndimage.zoom(cut, (max(1.01, cut.shape[0] * scale) / cut.shape[0],) * 2, order=1)[:16, :16]
    whole = np.zeros((16, 16))
    top, left = (16 - small.shape[0]) // 2, (16 - small.shape[1]) // 2
    whole[top : top + small.shape[0], left : left + small.shape[1]] = small
    norm = float(np.linalg.norm(whole))
    return whole / norm if norm else whole


def _skimage(module: str) -> Any:
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError as error:
        raise DetectorError("this detector needs scikit-image: pip install 'burnish[vision]'") from error
