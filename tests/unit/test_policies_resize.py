"""Dynamic resolution: within the budget, near the image's proportions, and every coordinate finds its way back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.policies.resize import ResizePlan, plan_resize

sizes = st.integers(1, 4000)
patches = st.sampled_from([4, 8, 14, 16, 28])
budgets = st.integers(1, 1024)
shares = st.floats(0.0, 1.0, exclude_max=True)
plans = st.builds(lambda w, h, p, b: plan_resize(w, h, patch_px=p, max_tokens=b), sizes, sizes, patches, budgets)


@given(sizes, sizes, patches, budgets)
def test_the_budget_holds(width: int, height: int, patch: int, budget: int) -> None:
    plan = plan_resize(width, height, patch_px=patch, max_tokens=budget)
    assert 1 <= plan.tokens <= budget
    if math.ceil(width / patch) * math.ceil(height / patch) <= budget:
        assert plan.model_width_px - width < patch
        assert plan.model_height_px - height < patch


@given(plans, shares, shares)
def test_model_coordinates_find_their_way_back(plan: ResizePlan, across: float, down: float) -> None:
    x, y = across * plan.width_px, down * plan.height_px
    for there, back in ((plan.to_model, plan.to_image), (plan.to_thousandths, plan.from_thousandths)):
        again = back(*there(x, y))
        assert again == pytest.approx((x, y), rel=1e-12, abs=1e-9)
    model_x, model_y = plan.to_model(x, y)
    assert 0 <= model_x <= plan.model_width_px
    assert 0 <= model_y <= plan.model_height_px


@given(plans, shares, shares)
def test_the_token_of_a_point_shows_it(plan: ResizePlan, across: float, down: float) -> None:
    x, y = across * plan.width_px, down * plan.height_px
    left, top, right, bottom = plan.token_box(plan.token_at(x, y))
    slack = 1e-9 * max(plan.width_px, plan.height_px)
    assert left - slack <= x <= right + slack
    assert top - slack <= y <= bottom + slack


@given(plans, st.data())
def test_the_middle_of_a_token_is_that_tokens(plan: ResizePlan, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, plan.tokens - 1))
    left, top, right, bottom = plan.token_box(token)
    assert plan.token_at((left + right) / 2, (top + bottom) / 2) == token
    model_x, model_y = plan.to_model((left + right) / 2, (top + bottom) / 2)
    row, column = divmod(token, plan.columns)
    assert (int(model_x // plan.patch_px), int(model_y // plan.patch_px)) == (column, row)


def test_proportions_are_kept_roughly() -> None:
    plan = plan_resize(1920, 1080, patch_px=16, max_tokens=256)
    assert abs(plan.columns / plan.rows - 1920 / 1080) < 0.2
    assert plan.tokens > 200


def test_points_outside_and_impossible_sizes_are_refused() -> None:
    plan = plan_resize(32, 32, patch_px=8, max_tokens=16)
    for point in ((32.0, 0.0), (-0.1, 3.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="lies outside"):
            plan.token_at(*point)
    with pytest.raises(ValueError, match="none of the 16"):
        plan.token_box(16)
    with pytest.raises(ConfigError, match="at least 1"):
        plan_resize(0, 3, patch_px=8, max_tokens=4)
