"""The benchmarks of grounded verification run, and the offline teachers see what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from burnish.core.detector import DetectorError, Pixels
from burnish.integrations.classical_detectors import BlobDetector, FaceDetector, block_matching_nearer, pixels_of
from burnish.integrations.transformers_detector import TransformersDetector, TransformersSegmenter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["verification_speed", "teacher_noise", "grounding_teachers"])
def test_quick(name: str) -> None:
    if name == "grounding_teachers":
        pytest.importorskip("skimage")
        pytest.importorskip("sklearn")
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["holds"] is None
    assert max(len(line) for line in done.stdout.splitlines()[:-1]) <= 80


def test_blobs_are_found_with_their_masks() -> None:
    pytest.importorskip("skimage")
    image = np.full((60, 80), 10, dtype=np.uint8)
    image[10:30, 20:45] = 220
    (found,) = BlobDetector(label="coin").detect(pixels_of(image), ["coin"])
    assert (found.left_px, found.top_px) == (pytest.approx(20, abs=1), pytest.approx(10, abs=1))
    assert BlobDetector(label="coin").detect(pixels_of(image), ["dog"]) == ()
    assert FaceDetector().detect(pixels_of(image), ["face"]) == []


def test_disparity_tells_what_is_nearer() -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(0, 255, (60, 200)).astype(np.uint8)
    right = np.roll(left, -5, axis=1)
    right[30:] = np.roll(left[30:], -20, axis=1)
    assert block_matching_nearer(pixels_of(left), pixels_of(right), (120, 45), (120, 12)) == 15
    with pytest.raises(DetectorError, match="leaves the image"):
        block_matching_nearer(pixels_of(left), pixels_of(right), (2, 12), (120, 12))


@pytest.mark.parametrize(
    "load",
    [
        lambda: TransformersDetector(model="/nowhere/at/all").detect(
            pixels_of(np.zeros((8, 8), dtype=np.uint8)), ["dog"]
        ),
        lambda: TransformersSegmenter(model="/nowhere/at/all").segment(
            pixels_of(np.zeros((8, 8), dtype=np.uint8)), _one_box()
        ),
    ],
)
def test_a_detector_without_weights_says_so(load: object) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(DetectorError, match="cannot be loaded"):
        load()  # type: ignore[operator]


def _one_box() -> Sequence[object]:
    from burnish.core.detector import Detection

    return [Detection(label="dog", left_px=0, top_px=0, right_px=4, bottom_px=4)]


def test_pixels_are_checked() -> None:
    with pytest.raises(ValueError, match="RGB"):
        Pixels(width_px=2, height_px=2, rgb=b"abc")
