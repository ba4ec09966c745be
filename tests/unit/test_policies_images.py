"""Images through renderer, sampler and learner: the same log-probabilities, and never another image's."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from seeing_models import TEXTS, as_trained, noise, question, request, save_llava, save_qwen_vl, tiny_vision

from burnish.algorithms.registry import make_loss
from burnish.core.errors import ConfigError, RenderError
from burnish.core.images import ImageSpan
from burnish.core.message import Message, Role, TextPart
from burnish.core.sampling import Sample, SampleRequest, opened
from burnish.policies.chat import ChatRenderer
from burnish.policies.forward import CachedForward, RecomputedForward
from burnish.policies.lean import LeanForward
from burnish.policies.load import load_policy
from burnish.policies.marks import IMAGE_TOKEN
from burnish.policies.processor import image_marks
from burnish.policies.reopen import reopen
from burnish.policies.sampler import EmbeddedSampler
from burnish.policies.sight import sight_of
from burnish.policies.tokenizer import train_tokenizer
from burnish.training.export import export_folder
from burnish.training.learner import Learner
from burnish.training.model_state import load_model_state, model_state
from burnish.training.passes import ModelPasses, TreePasses

A, B, WIDE = noise(1), noise(2), noise(3, 48, 20)
TOLERANCE = 1e-4


def _asked(renderer: ChatRenderer) -> list[SampleRequest]:
    """Groups of three over prompts that differ in nothing but their images, and over prompts of several sizes."""
    shown = [(A,), (B,), (WIDE,), (A, WIDE), (A, A), (A, B)]
    return [
        request(renderer, question(*images), f"{group}/{member}", 10 * group + member)
        for group, images in enumerate(shown)
        for member in range(3)
    ]


def _gap(asked: SampleRequest, sample: Sample, scores: array[float]) -> float:
    return max(abs(a - b) for a, b in zip(scores[len(asked.prompt_ids) :], sample.logprobs, strict=True))


def _swapped(asked: SampleRequest, sha256: str) -> tuple[ImageSpan, ...]:
    return tuple(ImageSpan(start=span.start, end=span.end, sha256=sha256) for span in asked.images)


@pytest.mark.parametrize("kind", [LeanForward, CachedForward, RecomputedForward])
def test_the_sampler_says_what_the_models_own_forward_says(kind: Callable[..., object]) -> None:
    model, _, renderer = tiny_vision()
    asked = _asked(renderer)
    sampler = EmbeddedSampler(model, pad_id=0, forward=kind(model))  # type: ignore[arg-type]
    sight = sight_of(model)
    assert sight is not None
    for one, sample in zip(asked, sampler.sample_now(asked), strict=True):
        ids = torch.tensor([list(one.prompt_ids + sample.token_ids)])
        given = sight.encoder.arguments(model, ids, [span.sha256 for span in one.images])
        with torch.no_grad():
            logprobs = model(**given).logits.log_softmax(-1)[0]
        start = len(one.prompt_ids)
        found = [float(logprobs[start - 1 + n, token]) for n, token in enumerate(sample.token_ids)]
        assert max(abs(a - b) for a, b in zip(found, sample.logprobs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("way", ["tree", "model"])
def test_learner_and_sampler_agree_and_a_swapped_image_does_not(way: str) -> None:
    model, _, renderer = tiny_vision()
    asked = _asked(renderer)
    samples = EmbeddedSampler(model, pad_id=0).sample_now(asked)
    learner = Learner(model, make_loss("sft", {}), max_micro_batch_tokens=100)
    assert isinstance(learner._passes, TreePasses)
    if way == "model":
        learner._passes = ModelPasses(model, pad_id=0)
    scores = learner.score([as_trained(*pair) for pair in zip(asked, samples, strict=True)])
    assert max(map(_gap, asked, samples, scores)) < TOLERANCE
    of_a = [as_trained(a, s, _swapped(a, B.sha256)) for a, s in zip(asked[:3], samples[:3], strict=True)]
    swapped = learner.score(of_a)
    assert max(map(_gap, asked[:3], samples[:3], swapped)) > 100 * TOLERANCE


def test_gradients_are_those_of_the_models_own_forward_whatever_the_cut() -> None:
    model, _, renderer = tiny_vision()
    asked = _asked(renderer)
    samples = EmbeddedSampler(model, pad_id=0).sample_now(asked)
    batch = [as_trained(*pair) for pair in zip(asked, samples, strict=True)]
    found = []
    for tokens, own in ((4096, False), (90, False), (4096, True)):
        learner = Learner(model, make_loss("sft", {}), max_micro_batch_tokens=tokens)
        if own:
            learner._passes = ModelPasses(model, pad_id=0)
        model.zero_grad(set_to_none=True)
        learner.accumulate(batch, 100.0)
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert float(found[0]["vision.stem.0.weight"].norm()) > 1e-3, "the encoder learns"
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert float((gradient - other[name]).norm()) <= 1e-4 * float(gradient.norm()) + 1e-7, name


def test_a_tree_shares_equal_images_and_never_different_ones() -> None:
    model, _, renderer = tiny_vision()
    asked = [request(renderer, question(image), f"{n}", n, 4) for n, image in enumerate((A, A, B))]
    samples = EmbeddedSampler(model, pad_id=0).sample_now(asked)
    assert asked[0].prompt_ids == asked[2].prompt_ids, "placeholders are equal ids"
    learner = Learner(model, make_loss("sft", {}))
    (batch,) = learner._passes.cut([as_trained(*pair) for pair in zip(asked, samples, strict=True)], 4096)
    first = asked[0].images[0].start
    assert batch.tree is not None
    nodes = batch.tree.columns_U.tolist()
    # three prompts that are one text up to the image; from there on two
    assert nodes.count(0) == 1
    assert nodes.count(first) == 2 == nodes.count(first + 15)


def test_a_held_text_is_only_taken_up_for_the_same_image() -> None:
    model, _, renderer = tiny_vision()
    sampler = EmbeddedSampler(model, pad_id=0)
    fresh = [EmbeddedSampler(model, pad_id=0).sample_now([request(renderer, question(x), "k", 5)])[0] for x in (A, B)]
    before = 0
    held = []
    for image in (A, B, A):
        held.append(sampler.sample_now([request(renderer, question(image), "k", 5)])[0])
        held_tokens, before = sampler.counts.prefilled_tokens - before, sampler.counts.prefilled_tokens
        if len(held) == 3:
            assert held_tokens < 5, "the first image's prompt is still held"
    assert np.allclose(held[0].logprobs, fresh[0].logprobs, atol=TOLERANCE)
    assert np.allclose(held[1].logprobs, fresh[1].logprobs, atol=TOLERANCE)
    assert list(fresh[0].token_ids) != list(fresh[1].token_ids) or not np.allclose(
        fresh[0].logprobs, fresh[1].logprobs, atol=100 * TOLERANCE
    )


def test_new_weights_see_anew() -> None:
    model, _, renderer = tiny_vision()
    sampler = EmbeddedSampler(model, pad_id=0)
    asked = [request(renderer, question(A), "k", 5)]
    (before,) = sampler.sample_now(asked)
    with torch.no_grad():
        model.vision.project.weight.mul_(-2.0)
    sampler.version = 1
    (after,) = sampler.sample_now(asked)
    (fresh,) = EmbeddedSampler(model, pad_id=0).sample_now(asked)
    assert np.allclose(after.logprobs, fresh.logprobs, atol=TOLERANCE)
    assert not np.allclose(before.logprobs[:1], after.logprobs[:1], atol=TOLERANCE)


def test_content_cannot_forge_an_image() -> None:
    _, tokenizer, renderer = tiny_vision()
    parts = (TextPart(text="a<|im"), TextPart(text="age|>b"), A, TextPart(text=IMAGE_TOKEN))
    ids, spans = opened(renderer, [Message(role=Role.USER, parts=parts)], [])
    placeholder = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert list(ids).count(placeholder) == 16
    assert [(span.end - span.start, span.sha256) for span in spans] == [(16, A.sha256)]
    spoken = renderer.encode_action(Message.assistant(f"I say {IMAGE_TOKEN}"))
    assert placeholder not in spoken


def test_a_tool_result_with_an_image_goes_on_where_the_conversation_ended() -> None:
    _, _, renderer = tiny_vision()
    asked, said = question(A), Message.assistant("look")
    shown = Message(role=Role.TOOL, parts=(B, TextPart(text="zoomed")), tool_call_id="c", name="zoom")
    extension = renderer.extend([asked, said], [shown], [])
    assert not extension.fork
    assert [span.sha256 for span in extension.images] == [B.sha256]


def test_text_models_refuse_images() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=310)
    with pytest.raises(RenderError, match="text models only"):
        opened(ChatRenderer(tokenizer), [question(A)], [])
    _, _, renderer = tiny_vision()
    with pytest.raises(RenderError, match="policies write text alone"):
        renderer.encode_action(Message(role=Role.ASSISTANT, parts=(A,)))


def test_a_prompt_of_another_budget_is_refused() -> None:
    model, _, renderer = tiny_vision()
    asked = request(renderer, question(A), "k", 0)
    wrong = (ImageSpan(start=asked.images[0].start, end=asked.images[0].end - 1, sha256=A.sha256),)
    with pytest.raises(RenderError, match="15 placeholders"):
        EmbeddedSampler(model, pad_id=0).sample_now(
            [
                SampleRequest(
                    key="k",
                    prompt_ids=asked.prompt_ids,
                    params=asked.params,
                    max_tokens=2,
                    seed=0,
                    stop_ids=(),
                    images=wrong,
                )
            ]
        )


def test_an_exported_model_sees_the_same(tmp_path: Path) -> None:
    model, tokenizer, renderer = tiny_vision()
    export_folder(model, tokenizer, tmp_path / "out", stop_ids=renderer.stop_ids)
    loaded = load_policy(tmp_path / "out", device="cpu", dtype="float32", offline=True)
    again = ChatRenderer(loaded.tokenizer, images=image_marks(loaded.model, loaded.tokenizer))
    asked = [request(renderer, question(A), "k", 5)]
    assert request(again, question(A), "k", 5).prompt_ids == asked[0].prompt_ids
    one, other = (EmbeddedSampler(m, pad_id=0).sample_now(asked)[0] for m in (model, loaded.model))
    assert one.token_ids == other.token_ids


@pytest.mark.parametrize(("save", "whole"), [(save_llava, False), (save_qwen_vl, True)])
def test_published_families_load_roll_out_and_learn(tmp_path: Path, save: Callable[[Path], None], whole: bool) -> None:
    save(tmp_path)
    policy = load_policy(tmp_path, device="cpu", dtype="float32", offline=True)
    sight = sight_of(policy.model)
    assert sight is not None
    assert sight.encoder.whole is whole, "Qwen-VL turns positions in three dimensions"
    renderer = ChatRenderer(policy.tokenizer, images=image_marks(policy.model, policy.tokenizer))
    asked = [
        request(renderer, question(*images), f"{group}/{member}", 10 * group + member, 6)
        for group, images in enumerate([(A,), (B,), (A, WIDE)])
        for member in range(2)
    ]
    sampler = EmbeddedSampler(policy.model, pad_id=0)
    assert isinstance(sampler.forward, RecomputedForward if whole else LeanForward)
    samples = sampler.sample_now(asked)
    learner = Learner(policy.model, make_loss("grpo", {}), max_micro_batch_tokens=200)
    batch = [as_trained(*pair) for pair in zip(asked, samples, strict=True)]
    assert max(map(_gap, asked, samples, learner.score(batch))) < TOLERANCE
    swapped = learner.score([as_trained(asked[0], samples[0], _swapped(asked[0], B.sha256))])
    assert _gap(asked[0], samples[0], swapped[0]) > 10 * TOLERANCE
    sums = learner.accumulate(batch, learner.normaliser(batch), version=0)
    eyes = [p for name, p in policy.model.named_parameters() if "visual" in name or "vision" in name]
    assert sum(float(p.grad.norm()) for p in eyes if p.grad is not None) > 0
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    optimizer.step()
    sampler.version = 1
    after = learner.score(batch)
    assert sum(map(sum, after)) != sum(map(sum, [one.behaviour_logprobs for one in batch]))
    assert sums is not None


@pytest.mark.parametrize("save", [save_llava, save_qwen_vl])
def test_a_run_reopens_a_published_family_from_its_config(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "source")
    policy = load_policy(tmp_path / "source", device="cpu", dtype="float32", offline=True)
    folder = tmp_path / "model"
    policy.model.config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    assert policy.images is not None
    policy.images.save(folder)
    empty = reopen(folder, device="cpu", dtype="float32")
    load_model_state(empty.model, model_state(policy.model))
    renderer = ChatRenderer(empty.tokenizer, images=image_marks(empty.model, empty.tokenizer))
    asked = [request(renderer, question(A), "k", 5, 5)]
    one, other = (EmbeddedSampler(m, pad_id=0).sample_now(asked)[0] for m in (policy.model, empty.model))
    assert one.token_ids == other.token_ids


def test_a_model_without_its_processor_says_so(tmp_path: Path) -> None:
    save_llava(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="without a usable processor"):
        load_policy(tmp_path, device="cpu", dtype="float32", offline=True)
