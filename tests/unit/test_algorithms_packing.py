from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.packing import micro_batches
from burnish.core.kept import KeptSets
from burnish.core.learning import TrainingSample

masks = st.lists(st.booleans(), max_size=12).map(lambda tail: [False, *tail])


def sample(name: str, mask: list[bool], start: int = 10) -> TrainingSample:
    length = len(mask)
    return TrainingSample(
        trajectory_id=name,
        group_id="g",
        token_ids=array("i", range(start, start + length)),
        loss_mask=array("b", mask),
        behaviour_logprobs=array("f", [-float(t) if m else 0.0 for t, m in enumerate(mask)]),
        versions=array("i", [0 if m else -1 for m in mask]),
        advantages=array("f", [0.5 * t if m else 0.0 for t, m in enumerate(mask)]),
    )


def test_a_sample_ends_before_its_last_trained_token():
    (batch,) = micro_batches([sample("a", [0, 0, 1, 1, 0, 0])], max_tokens=100, pad_id=0)
    assert batch.token_ids_BT.tolist() == [[10, 11, 12]]
    assert batch.positions_N.tolist() == [1, 2]
    assert batch.target_ids_N.tolist() == [12, 13]
    assert batch.behaviour_logprobs_N.tolist() == [-2.0, -3.0]
    assert batch.advantages_N.tolist() == [1.0, 1.5]
    assert batch.sequence_tokens_N.tolist() == [2.0, 2.0]


@given(st.lists(masks, max_size=10), st.integers(1, 40))
def test_every_trained_token_appears_once_with_its_context(all_masks, max_tokens):
    samples = [sample(str(index), mask, start=100 * index) for index, mask in enumerate(all_masks)]
    batches = micro_batches(samples, max_tokens=max_tokens, pad_id=0)
    seen = []
    for batch in batches:
        rows, width = batch.token_ids_BT.shape
        assert batch.rows == rows
        assert batch.padded_tokens <= max_tokens or rows == 1
        place = 0
        for row, index in enumerate(batch.sample_indices_B):
            for _ in range(batch.trained_tokens_B[row]):
                at, column = divmod(int(batch.positions_N[place]), width)
                assert at == row
                context = samples[index].token_ids[: column + 1].tolist()
                assert batch.token_ids_BT[row, : column + 1].tolist() == context
                assert batch.target_ids_N[place] == samples[index].token_ids[column + 1]
                seen.append((index, column + 1))
                place += 1
        assert place == len(batch.target_ids_N)
    assert sorted(seen) == [(i, t) for i, s in enumerate(samples) for t, m in enumerate(s.loss_mask) if m]
    widths = [batch.token_ids_BT.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_the_cut_is_deterministic_and_ties_keep_their_order():
    samples = [sample(str(index), [0, 0, 1]) for index in range(5)]
    cut = [batch.sample_indices_B for batch in micro_batches(samples, max_tokens=4, pad_id=0)]
    assert cut == [(0, 1), (2, 3), (4,)]


def test_padding_waste_is_small_when_lengths_vary():
    samples = [sample(str(n), [0] * 5 + [1] * (30 + n % 30)) for n in range(120)]
    batches = micro_batches(samples, max_tokens=512, pad_id=0)
    real = sum(s.length - 1 for s in samples)
    assert sum(batch.padded_tokens for batch in batches) < 1.05 * real


def test_samples_without_trained_tokens_are_left_out():
    assert micro_batches([sample("a", [0, 0]), sample("b", [])], max_tokens=8, pad_id=0) == []


def test_a_trained_first_token_is_refused():
    with pytest.raises(ValueError, match="first token of bad"):
        micro_batches([sample("bad", [1, 1])], max_tokens=8, pad_id=0)
    with pytest.raises(ValueError, match="max_tokens"):
        micro_batches([], max_tokens=0, pad_id=0)


def test_to_the_same_device_is_free():
    (batch,) = micro_batches([sample("a", [0, 1])], max_tokens=8, pad_id=0)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.token_ids_BT.is_meta
    assert moved.advantages_N.is_meta


def test_rows_and_versions_stand_beside_their_tokens():
    samples = [replace(sample("a", [0, 1, 0, 1]), versions=array("i", [-1, 3, -1, 5])), sample("b", [0, 0, 0, 1])]
    (batch,) = micro_batches(samples, max_tokens=100, pad_id=0)
    assert batch.sequence_N.tolist() == [0, 0, 1]
    assert batch.versions_N.tolist() == [3, 5, 0]
    assert batch.kept is None
    assert batch.proximal_logprobs_N is None


def test_kept_sets_of_trained_tokens_alone_are_packed():
    # The third token was drawn elsewhere on the path: it has a set, but it is context here.
    sets = KeptSets(counts=array("i", [0, 2, 1, 3]), ids=array("i", [11, 12, 7, 1, 2, 13]))
    samples = [replace(sample("a", [0, 1, 0, 1]), kept=sets), sample("b", [0, 0, 0, 1])]
    (batch,) = micro_batches(samples, max_tokens=100, pad_id=0)
    assert batch.kept.counts_N.tolist() == [2, 3, 0]
    assert batch.kept.ids_K.tolist() == [11, 12, 1, 2, 13]
    assert batch.to(torch.device("meta")).kept.ids_K.is_meta


def test_proximal_log_probabilities_are_for_all_samples_or_none():
    scored = replace(sample("a", [0, 1, 1]), proximal_logprobs=array("f", [0.0, -0.5, -0.25]))
    (batch,) = micro_batches([scored], max_tokens=100, pad_id=0)
    assert batch.proximal_logprobs_N.tolist() == [-0.5, -0.25]
    with pytest.raises(ValueError, match="b has no proximal"):
        micro_batches([scored, sample("b", [0, 1, 1])], max_tokens=100, pad_id=0)
