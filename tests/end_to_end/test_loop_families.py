"""Every family of models that users bring: two steps of RL on a model from a folder, all weights or adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
from letter_runs import changed, run_letters, weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from burnish.core.errors import ConfigError
from burnish.loop.progress import Progress
from burnish.loop.standalone import stored_policy
from burnish.policies.build import FAMILIES, TinySpec, build_tiny
from burnish.policies.load import load_policy
from burnish.policies.tokenizer import train_tokenizer
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.training.model_state import model_state

CORPUS = ["What is in a? x y z look drawer name arguments assistant user tool"] * 4
TEMPLATES = {
    # Knows tools and is used as it is.
    "qwen3": (
        "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Chat templates without tools, as most models of these families have had.
    "llama": (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}<|im_end|>{% else %}{{ raise_exception('roles') }}{% endif %}"
        "{% endfor %}"
    ),
    "gemma": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "gpt2": None,
}
NOTICES = {
    "qwen3": "",
    "llama": "does not show Hermes-style tool calls",
    "mistral": "does not show Hermes-style tool calls",
    "gemma": "does not show Hermes-style tool calls",
    "gpt2": "the tokenizer has no chat template: the Burnish template is used",
}
WORDS = (
    "run.workers=1",
    "warm_start.steps=0",
    "rl.steps=2",
    "rl.lr=1e-3",
    "rl.groups=3",
    "rl.group_size=6",
    "evaluation.tasks=2",
    # Most babbling ends somewhere within so many tokens.
    "limits.max_turn_tokens=90",
    "limits.max_context_tokens=800",
)


def foreign_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as GPT-2 has: one marker for everything, no padding token, no chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def make_model(family: str, folder: Path, positions: int = 1024) -> Path:
    """A tiny random model of a family, saved as its users would have it."""
    if family == "gpt2":
        tokenizer = foreign_tokenizer()
    else:
        tokenizer = train_tokenizer(CORPUS, vocab_size=300)
        tokenizer.chat_template = TEMPLATES[family]
        if family == "gemma":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    spec = TinySpec(
        family=family,
        hidden_size=32,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate_size=48,
        max_positions=positions,
        tie_embeddings=family in ("gemma", "gpt2", "qwen3"),
    )
    build_tiny(tokenizer, spec, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The saved model of a family, made once."""
    made: dict[str, Path] = {}

    def _saved(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp("families") / family)
        return made[family]

    return _saved


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_rl(family: str, rank: int, saved, tmp_path) -> None:
    said: list[Progress] = []
    path = saved(family)
    show = "none" if rank else "full"
    words = (f"model.path={path}", f"model.lora.rank={rank}", f"model.show_tools={show}", *WORDS)
    run = run_letters(tmp_path / "run", *words, watch=said.append)

    reader = RunReader(run)
    assert reader.status().state is RunState.FINISHED
    for step in (1, 2):
        scalars = reader.step_scalars("rl", step)
        assert scalars["groups/signal"] > 0
        assert scalars["check/ratio_nats"] < 1e-4
        assert scalars["check/canary_nats"] < 1e-4
    assert "check/micro_batch" in reader.step_scalars("rl", 1)

    prompt = reader.trajectories("rl", 1)[0].trajectory.nodes[0].token_ids
    shown = stored_policy(run)[1].tokenizer.decode(list(prompt))
    assert ("Look into a drawer" in shown) == (show == "full")

    before, after = weights(run, "rl-000000"), weights(run, "final")
    assert changed(before, after)
    adapters = [name for name in after if "lora_" in name]
    assert bool(adapters) == (rank > 0)
    if rank:
        # Checkpoints hold the adapters alone, and what lies below them is still what was loaded.
        assert len(adapters) == len(after)
        _, policy, _ = stored_policy(run)
        base = {
            name: tensor for name, tensor in policy.model.get_base_model().named_parameters() if "lora_" not in name
        }
        loaded = model_state(load_policy(path).model)
        assert {name.replace(".base_layer", "") for name in base} == set(loaded)
        assert not changed({name.replace(".base_layer", ""): tensor for name, tensor in base.items()}, loaded)
    else:
        assert len(changed(before, after)) == len(after)

    messages = " | ".join(progress.message for progress in said)
    assert "memory plan on cpu" in messages
    assert ("Burnish template" in messages) == bool(NOTICES[family])
    assert NOTICES[family] in messages


def test_a_conversation_fits_into_the_positions_of_the_model(saved, tmp_path) -> None:
    """GPT-2 has a table of positions; the limits of the world are wider than it."""
    words = [word for word in WORDS if "max_context" not in word and "max_turn_tokens" not in word]
    limits = ("limits.max_context_tokens=4096", "limits.max_turn_tokens=2000", "limits.max_episode_tokens=9999")
    path = make_model("gpt2", tmp_path / "gpt2", positions=512)
    run = run_letters(tmp_path / "run", f"model.path={path}", *words, *limits, "rl.steps=1", "rl.groups=1")
    lengths = [
        sum(len(node.token_ids) for node in row.trajectory.nodes) for row in RunReader(run).trajectories("rl", 1)
    ]
    assert 500 < max(lengths) <= 512
    labels = {row.trajectory.outcome.label for row in RunReader(run).trajectories("rl", 1)}
    assert labels <= {"truncated:context_tokens", "completed"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.path=./nowhere"], "there is no folder ./nowhere"),
        (["model.lora.rank=2", "model.lora.targets=q_prj"], "bind no module of .*; its linear layers: .*q_proj"),
        (["model.device=cuda:9"], "cuda:9"),
        (["model.device=gpu"], "unknown device 'gpu'"),
    ],
)
def test_a_model_that_cannot_be_had_is_explained(saved, tmp_path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_letters(tmp_path / "run", f"model.path={saved('qwen3')}", *WORDS, *words)
