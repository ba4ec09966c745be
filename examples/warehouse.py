"""How many boxes are on two shelves?  Two look-ups, and an answer that names both numbers."""

from burnish import Environment, Task, tool


class Warehouse(Environment):
    mistakes = ("same_shelf",)

    def tasks(self, split, rng):
        for _ in range(2000 if split == "train" else 300):
            boxes = {shelf: rng.randint(1, 9) for shelf in "ABCDEF"}
            one, two = rng.sample("ABCDEF", 2)
            question = f"How many boxes are on shelves {one} and {two}?"
            answer = f"{boxes[one]} and {boxes[two]}"
            yield Task(prompt=question, setup={"boxes": boxes, "ask": [one, two]}, reference={"answer": answer})

    @tool
    def count(self, shelf: str) -> int:
        """Count the boxes on a shelf."""
        return self.task.setup["boxes"][shelf]

    def get_reward(self, answer):
        return answer == self.task.reference["answer"]

    def solve(self, mistake=None):
        one, two = self.task.setup["ask"]
        first = yield self.count.call(one)
        second = yield self.count.call(one if mistake else two)
        return f"{first} and {second}"
