"""Recipes: every mistake in a key, a value or a name is said with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from burnish.core.errors import ConfigError
from burnish.loop.config import ENVIRONMENTS, FORKABLE_SECTIONS, Recipe
from burnish.loop.recipes import all_keys, apply_overrides, builtin_recipes, load_recipe, validate
from burnish.loop.setup import loss_settings


@pytest.fixture
def _elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def problem(override: str) -> str:
    """What is said about an override of the demo recipe, "" where it applies."""
    try:
        load_recipe("demo", [override])
    except ConfigError as error:
        return str(error) or "no text"
    return ""


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.stpes=3", "unknown key 'rl.stpes'; did you mean 'rl.steps'?"),
        ("rll.steps=3", "did you mean 'rl.steps'?"),
        ("steps=3", "did you mean 'warm_start.steps' or 'rl.steps'?"),
        ("rl.max_turns=3", "did you mean 'limits.max_turns'?"),
        ("warmstart=3", "did you mean 'warm_start'?"),
        ("model.tiny.layer=3", "did you mean 'model.tiny.layers'?"),
        ("zzzzzzzz=3", "unknown key 'zzzzzzzz'; `burnish keys` lists all"),
        ("rl=3", "rl is a section; set one of its keys, such as rl.steps=..."),
        ("model.lora=3", "such as model.lora.rank=..."),
        ("rl.steps", "not of the form section.key=value"),
        ("=3", "not of the form section.key=value"),
        ("rl.=3", "unknown key 'rl.'"),
        ("environment.options.=3", "unknown key"),
    ],
)
def test_a_wrong_override_says_what_was_meant(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.steps=many", "rl.steps = 'many'"),
        ("rl.steps=1.5", "rl.steps = 1.5"),
        ("rl.steps=-1", "greater than or equal to 0"),
        ("rl.group_size=1", "rl.group_size = 1: input should be greater than or equal to 2"),
        ("rl.lr=nan", "rl.lr = nan"),
        ("rl.lr=inf", "rl.lr = inf"),
        ("rl.lr=0", "greater than 0"),
        ("rl.baseline=meen", "'mean' or 'leave_one_out'"),
        ("evaluation.modes=greedy", "evaluation.modes = 'greedy'"),
        ("run.in_process=perhaps", "run.in_process = 'perhaps'"),
        ("model.tiny.family=qwen", "'qwen3'"),
        ("environment.options=3", "environment.options = 3"),
        ("limits.max_turns=0", "limits.max_turns = 0"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith("demo: ")


def test_every_wrong_key_of_a_file_is_listed_at_once(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[rl]\nstpes = 3\nlr = "fast"\n\n[rll]\nsteps = 1\n\n[limits]\nturns = 3\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    for part in ("'rl.stpes'; did you mean 'rl.steps'", "rl.lr = 'fast'", "'rll'; did you mean 'rl'", "'limits.turns'"):
        assert part in text


def test_a_section_that_is_a_value_is_an_error_and_not_a_traceback(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("rl = 3\n")
    with pytest.raises(ConfigError, match="rl = 3"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match="rl is a value, not a section"):
        load_recipe(str(path), ["rl.steps=1"])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run.name=first", "first"),
        ("run.name=2024", "2024"),
        ("run.name=2024-01-31", "2024-01-31"),
        ("run.name=true-story", "true-story"),
        ("run.name='with spaces'", "with spaces"),
        ("model.path=./models/a=b", "./models/a=b"),
    ],
)
def test_text_needs_no_quotes(word: str, value: str) -> None:
    recipe = load_recipe("demo", [word])
    section, key = word.partition("=")[0].split(".")
    assert getattr(getattr(recipe, section), key) == value


def test_overrides_reach_the_typed_recipe_and_the_last_one_wins() -> None:
    words = ["rl.lr=1e-4", "rl.lr=2e-4", "environment.options={level = 2}", "environment.options.seed_text=abc"]
    words += ["warm_start.mistakes.guess=0.25", "evaluation.modes=['sampled']", "rl.filter_zero_signal=false"]
    recipe = load_recipe("demo", words)
    assert recipe.rl.lr == 2e-4
    assert recipe.environment.options == {"level": 2, "seed_text": "abc"}
    assert recipe.warm_start.mistakes["guess"] == 0.25
    assert recipe.evaluation.modes == ("sampled",)
    assert not recipe.rl.filter_zero_signal


def test_overrides_leave_the_given_data_alone() -> None:
    data = {"rl": {"lr": 1.0}}
    apply_overrides(data, ["rl.lr=2.0", "rl.steps=3"])
    assert data == {"rl": {"lr": 1.0}}


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_either_applies_or_is_a_config_error(key: str, value: str) -> None:
    assert problem(f"{key}={value}") != "no text"


@given(st.sampled_from(all_keys()), st.text(max_size=30))
def test_any_value_of_a_known_key_either_applies_or_is_a_config_error(key: str, value: str) -> None:
    found = problem(f"{key}={value}")
    assert not found or key in found


# -- names ----------------------------------------------------------------------------------------------------------


def test_built_in_recipes_are_valid_and_say_why() -> None:
    assert {"demo", "own", "pretrained"} <= set(builtin_recipes())
    for name in builtin_recipes():
        assert load_recipe(name).rl.steps > 0


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_name_works_like_an_environment_file(name: str) -> None:
    recipe = load_recipe(name, ["rl.steps=7"])
    assert recipe.environment.name == name
    assert recipe.rl.steps == 7
    assert recipe.warm_start == load_recipe("own").warm_start == load_recipe("my_env.py").warm_start


@pytest.mark.parametrize("name", ["my_env.py", "my_env.py:Second", "rows.jsonl", "reasoning-gym:chain_sum", "shop"])
def test_a_given_model_starts_from_the_recipe_for_pretrained_models(name: str) -> None:
    recipe = load_recipe(name, ["model.path=some/model"])
    assert recipe.environment.name == name
    assert recipe.warm_start.steps == 0
    assert recipe.rl.lr == load_recipe("pretrained").rl.lr < 1e-5
    assert load_recipe(name, ["model.path=some/model", "rl.lr=0.5"]).rl.lr == 0.5
    assert load_recipe("demo", ["model.path=some/model"]).warm_start.steps > 0


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shpo", "did you mean 'shop'?"),
        ("calulator", "did you mean 'calculator'?"),
        ("dmeo", "did you mean 'demo'?"),
        ("reasoning_gym:chain_sum", "did you mean 'reasoning-gym'?"),
        ("shpo:heldout", "did you mean 'shop'?"),
        ("warehouse", "did you mean 'warehouse.py'?"),
        ("zzzz", "recipes: demo,"),
        ("", "unknown recipe or environment ''"),
        ("demo.toml", "the built-in recipe is named 'demo'"),
        ("recipee.toml", "did you mean 'recipe.toml'?"),
        ("nothing/like/it.toml", "does not exist"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(name: str, message: str) -> None:
    Path("warehouse.py").touch()
    Path("recipe.toml").touch()
    with pytest.raises(ConfigError) as caught:
        load_recipe(name)
    assert message in str(caught.value)


# -- files ----------------------------------------------------------------------------------------------------------


def test_broken_toml_says_file_and_line(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[rl]\nsteps = = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML: .*line 2"):
        load_recipe(str(path))


def test_a_recipe_that_is_no_text_is_an_error(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe[rl]")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(str(path))


@pytest.mark.usefixtures("_elsewhere")
def test_files_beside_a_recipe_are_found_from_elsewhere(tmp_path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "env.py").touch()
    (folder / "chats.jsonl").touch()
    recipe_path = folder / "recipe.toml"
    recipe_path.write_text('[environment]\nname = "env.py:One"\n[warm_start]\ndata = "chats.jsonl"\n')
    recipe = load_recipe("project/recipe.toml")
    assert recipe.environment.name == "project/env.py:One"
    assert recipe.warm_start.data == "project/chats.jsonl"
    # What exists where the user stands is what the user means.
    Path("env.py").touch()
    assert load_recipe("project/recipe.toml").environment.name == "env.py:One"
    assert load_recipe("project/recipe.toml", ["environment.name=other.py"]).environment.name == "other.py"


# -- the recipe itself ----------------------------------------------------------------------------------------------


def test_a_recipe_survives_json_unchanged() -> None:
    recipe = load_recipe("demo", ["limits.max_turns=3", "model.lora.rank=4", "environment.options.level=2"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert validate(recipe.model_dump(mode="json", exclude_none=True), "again") == recipe


def test_a_recipe_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("demo").rl.lr = 1.0  # type: ignore[misc]


def test_all_keys_are_leaves() -> None:
    keys = all_keys()
    assert len(keys) == len(set(keys))
    assert {"rl.lr", "model.tiny.layers", "environment.options", "limits.max_turns"} <= set(keys)
    for key in keys:
        model: type[BaseModel] = Recipe
        *sections, leaf = key.split(".")
        for section in sections:
            model = model.model_fields[section].annotation  # type: ignore[assignment]
        assert leaf in model.model_fields


def test_sections_that_a_fork_may_change_exist() -> None:
    assert set(FORKABLE_SECTIONS) < set(Recipe.model_fields)
    assert {"model", "warm_start"} == set(Recipe.model_fields) - set(FORKABLE_SECTIONS)


@pytest.mark.parametrize(
    ("words", "correction"),
    [
        ([], "none"),
        (["rollout.mode=async"], "none"),
        (["rl.loss=gspo"], "none"),
        (["rl.loss=gspo", "rollout.mode=async"], "token_truncate"),
        (["rl.correction=sequence_mask", "rollout.mode=async"], "sequence_mask"),
    ],
)
def test_the_correction_that_is_taken_by_itself(words: list[str], correction: str) -> None:
    assert loss_settings(load_recipe("demo", words))["rl"].options["correction"] == correction
