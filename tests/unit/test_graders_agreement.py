"""Agreement coefficients against published figures and against their own laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from burnish.graders.agreement import Scale, alpha_interval, cohen_kappa, krippendorff_alpha, rating_table

N = None
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C/E: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.mark.parametrize(
    ("scale", "published"), [(Scale.NOMINAL, 0.743), (Scale.ORDINAL, 0.815), (Scale.INTERVAL, 0.849)]
)
def test_alpha_is_that_of_krippendorffs_example(scale: Scale, published: float) -> None:
    assert krippendorff_alpha(OBSERVERS, scale) == pytest.approx(published, abs=5e-4)


def test_alpha_is_that_of_krippendorffs_binary_example() -> None:
    # The same paper, section A: two observers, ten units, binary.
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha([meg, owen]) == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_that_of_krippendorffs_nominal_example() -> None:
    # The same paper, section B: two observers, twelve units, five values.
    ben = "aabbdcccedda"
    gerry = "babbbccceddd"
    codes = {letter: code for code, letter in enumerate("abcde")}
    table = [[codes[x] for x in ben], [codes[x] for x in gerry]]
    assert krippendorff_alpha(table) == pytest.approx(0.692, abs=5e-4)


def _pairs(table: list[list[int]]) -> tuple[list[float], list[float]]:
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [float(i) for i, _ in cells], [float(j) for _, j in cells]


@pytest.mark.parametrize(
    ("table", "published"),
    [
        # Fleiss, Cohen & Everitt 1969, Psychological Bulletin 72:323, table 1 (proportions of 100): kappa .429
        ([[53, 5, 2], [11, 14, 5], [1, 6, 3]], 0.429),
        # Cohen's kappa with equal agreement and different margins, as textbooks print it: .130 and .259
        ([[45, 15], [25, 15]], 0.130),
        ([[25, 35], [5, 35]], 0.259),
    ],
)
def test_kappa_is_that_of_published_tables(table: list[list[int]], published: float) -> None:
    assert cohen_kappa(*_pairs(table)) == pytest.approx(published, abs=6e-4)


ratings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40)


@given(ratings)
def test_squared_weights_give_the_concordance_of_fleiss_and_cohen(pairs: list[tuple[int, int]]) -> None:
    """Fleiss & Cohen 1973: quadratic kappa is 2 cov / (var + var + difference of means squared)."""
    a, b = np.array(pairs, dtype=float).T
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    assume(spread > 0)
    concordance = 2 * np.mean((a - a.mean()) * (b - b.mean())) / spread
    assert cohen_kappa(a.tolist(), b.tolist(), Scale.INTERVAL) == pytest.approx(concordance, abs=1e-9)


@given(ratings, st.sampled_from(Scale))
def test_laws_of_both(pairs: list[tuple[int, int]], scale: Scale) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    for one, other in ((cohen_kappa(a, b, scale), cohen_kappa(b, a, scale)), (
        krippendorff_alpha([a, b], scale), krippendorff_alpha([b, a, [None] * len(a)], scale))):  # fmt: skip
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-9)
        assert one is None or one <= 1 + 1e-12
    if len(set(a)) > 1:
        assert cohen_kappa(a, a, scale) == 1.0
        assert krippendorff_alpha([a, a, a], scale) == pytest.approx(1.0)


def test_on_two_values_all_scales_are_one() -> None:
    a, b = [0.0, 1, 1, 0, 1, 0], [0.0, 1, 0, 0, 1, 1]
    assert len({round(cohen_kappa(a, b, scale) or 9, 9) for scale in Scale}) == 1


def test_nothing_that_varies_gives_none_and_raters_by_chance_give_zero() -> None:
    assert cohen_kappa([1.0, 1.0], [1.0, 1.0]) is None
    assert krippendorff_alpha([[1.0, 1.0], [1.0, 1.0]]) is None
    assert krippendorff_alpha([[1.0, None], [None, 0.0]]) is None
    assert krippendorff_alpha([]) is None
    rng = np.random.default_rng(1)
    table = rng.integers(0, 2, size=(3, 4000)).astype(float).tolist()
    assert krippendorff_alpha(table) == pytest.approx(0.0, abs=0.03)
    assert cohen_kappa(table[0], table[1]) == pytest.approx(0.0, abs=0.05)


def test_the_interval_holds_the_value_and_narrows_with_units() -> None:
    few = alpha_interval(OBSERVERS, np.random.default_rng(0))
    many = alpha_interval([row * 20 for row in OBSERVERS], np.random.default_rng(0))
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.value is not None
        assert found.low <= found.value <= found.high
    assert few.n == 11
    assert (many.high or 9) - (many.low or 0) < 0.5 * ((few.high or 0) - (few.low or 0))
    assert alpha_interval([[1.0], [1.0]], np.random.default_rng(0)).value is None


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        cohen_kappa([1.0], [])
    with pytest.raises(ValueError, match="each unit"):
        krippendorff_alpha([[1.0], [1.0, 2.0]])
    assert rating_table([]) == ([], [])
