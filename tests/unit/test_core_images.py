"""Images by content: shelves, headers, spans, and the way through rollouts, hosts and the store."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from eyes_env import Eyes
from PIL import Image
from seeing_models import noise, question, tiny_vision

from burnish.core.images import (
    ImageError,
    ImageShelf,
    ImageSpan,
    image_header,
    image_part,
    joined_spans,
    png_bytes,
)
from burnish.core.message import ImagePart
from burnish.core.outcome import Owner
from burnish.core.tool import ShownResult
from burnish.environments.tool import result_text
from burnish.environments.wire import message_in, message_out, result_in, result_out
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.rollout.samples import demonstration_samples
from burnish.store.rows import Fate, StoredTrajectory
from burnish.store.segments import from_table, to_table


def test_a_png_is_the_one_that_others_read() -> None:
    rgb = bytes(range(2 * 3 * 3))
    with Image.open(io.BytesIO(png_bytes(2, 3, rgb))) as image:
        assert image.size == (2, 3)
        assert image.convert("RGB").tobytes() == rgb


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif"])
def test_headers_say_type_and_size(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (37, 21)).save(file, kind)
    assert image_header(file.getvalue()) == (f"image/{kind}", 37, 21)


def test_other_bytes_are_refused() -> None:
    for data in (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(ImageError, match="no PNG, JPEG or GIF"):
            image_part(data, ImageShelf())
    with pytest.raises(ImageError, match="RGB pixels"):
        png_bytes(2, 2, b"abc")


def test_another_process_reads_the_files_of_a_shelf(tmp_path: Path) -> None:
    here = ImageShelf()
    early = image_part(png_bytes(1, 1, b"abc"), here)
    here.keep_in(tmp_path)
    here.keep([early.sha256, "0" * 64])
    late = image_part(png_bytes(1, 1, b"xyz"), here)
    there = ImageShelf(tmp_path)
    assert [there.get(part.sha256) for part in (early, late)] == [here.get(part.sha256) for part in (early, late)]
    with pytest.raises(ImageError, match="make image parts"):
        there.get("0" * 64)
    path = tmp_path / late.sha256[:2] / late.sha256
    path.write_bytes(b"rotten")
    with pytest.raises(ImageError, match="holds other bytes"):
        ImageShelf(tmp_path).get(late.sha256)


def test_a_shelf_moves_on_to_the_next_run(tmp_path: Path) -> None:
    shelf = ImageShelf(tmp_path / "one")
    part = image_part(png_bytes(1, 1, b"abc"), shelf)
    other = image_part(png_bytes(1, 1, b"xyz"), shelf)
    with shelf.kept_in(tmp_path / "two"):
        assert shelf.get(part.sha256)
    assert shelf.folder == tmp_path / "one"
    late = image_part(png_bytes(1, 1, b"mno"), shelf)
    assert kept(tmp_path / "two") == {part.sha256}, "workers of the next run read its folder alone"
    assert kept(tmp_path / "one") == {part.sha256, other.sha256, late.sha256}


def kept(folder: Path) -> set[str]:
    """Hashes of the images in a folder."""
    return {path.name for path in folder.glob("*/*")}


def test_spans_move_with_their_streams() -> None:
    span = ImageSpan(start=1, end=3, sha256="a")
    assert joined_spans([(4, (span,)), (2, ()), (3, (span,))]) == (span, ImageSpan(start=7, end=9, sha256="a"))


def test_a_tool_may_return_an_image() -> None:
    part = noise(7)
    for value, text in ((part, ""), (["seen", part], "seen"), ([part, {"n": 1}], '{"n":1}')):
        shown = result_text(value)
        assert isinstance(shown, ShownResult)
        assert (str(shown), shown.images) == (text, (part,))
    assert not isinstance(result_text([1, 2]), ShownResult)


def test_bytes_go_to_another_process_once() -> None:
    part, sent = noise(8), set[str]()
    first, second = (message_out(question(part), sent) for _ in range(2))
    assert [["bytes" in item for item in data["parts"]] for data in (first, second)] == [
        [False, True, False],
        [False, False, False],
    ]
    assert message_in(first) == message_in(second) == question(part)
    again = result_in(result_out(ShownResult("x", (noise(9),)), sent))
    assert isinstance(again, ShownResult)
    assert again.images == (noise(9),)
    assert result_in(result_out("plain", sent)) == "plain"
    forged = message_out(question(noise(10)), set())
    forged["parts"][1]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="do not have its hash"):
        message_in(forged)


def test_images_in_prompt_and_tool_result_reach_samples_and_store() -> None:
    _, _, renderer = tiny_vision()
    task = Eyes().task_of(3)
    plan = EpisodePlan(id="sft/0", group_id="sft/0", task=task, sample_index=0, seed=1)
    (done,) = asyncio.run(
        run_scripted([plan], make_environment=lambda _: Eyes(), renderer=renderer, policy=Eyes.expert)
    )
    assert done.outcome.owner is not Owner.INFRASTRUCTURE, done.outcome
    shown = [span.sha256 for node in done.nodes for span in node.images]
    parts = [part for message in done.messages for part in message.parts if isinstance(part, ImagePart)]
    assert shown == [part.sha256 for part in parts]
    assert len(shown) == 2, "the prompt's image and the tool's"
    (sample,) = demonstration_samples(done)
    placeholder = sample.token_ids[sample.images[0].start]
    for span in sample.images:
        assert set(sample.token_ids[span.start : span.end]) == {placeholder}
        assert not any(sample.loss_mask[span.start : span.end])
    row = StoredTrajectory(trajectory=done, phase="sft", step=0, policy_version=0, grades=(), fate=Fate.DEMONSTRATION)
    (back,) = from_table(to_table([row]))
    assert [node.images for node in back.trajectory.nodes] == [node.images for node in done.nodes]
