"""A small world whose reward varies even for a policy that babbles, so that every group has something to learn from."""

from __future__ import annotations

from burnish import Environment, Limits, Task, tool

DRAWERS = "abcd"


class Letters(Environment):
    """Look into a drawer and say its letter; the reward depends on every character of the answer."""

    limits = Limits(max_turns=2, max_turn_tokens=10, max_context_tokens=160)
    chance = 0.2
    mistakes = ("blind",)

    def __init__(self, drawers: int = 4) -> None:
        self.n_drawers = drawers

    def tasks(self, split, rng):
        made = 0
        while made < (24 if split == "train" else 8):
            letters = {drawer: rng.choice("uvwxyz") for drawer in DRAWERS[: self.n_drawers]}
            if (sum(map(ord, letters.values())) % 4 == 0) != (split == "heldout"):
                continue
            asked, made = rng.choice(sorted(letters)), made + 1
            yield Task(
                prompt=f"What is in {asked}?",
                setup={"letters": letters, "asked": asked},
                reference={"answer": letters[asked]},
            )

    @tool
    def look(self, drawer: str) -> str:
        """Look into a drawer.

        Args:
            drawer: its name
        """
        return self.task.setup["letters"][drawer]

    def get_reward(self, answer):
        if answer == self.task.reference["answer"]:
            return 1.0
        return sum(map(ord, answer)) % 7 / 8

    def solve(self, mistake=None):
        if mistake == "blind":
            return "x"
        return (yield self.look.call(self.task.setup["asked"]))
