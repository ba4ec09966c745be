"""How many boxes do two shelves hold together?  Two look-ups and an addition."""

from burnish import Environment, Task, tool


class Warehouse(Environment):
    chance = 0.1

    def tasks(self, split, rng):
        for _ in range(2000 if split == "train" else 300):
            boxes = {shelf: rng.randint(0, 9) for shelf in "ABCDEF"}
            one, two = rng.sample("ABCDEF", 2)
            question = f"How many boxes are on shelves {one} and {two}?"
            answer = str(boxes[one] + boxes[two])
            yield Task(prompt=question, setup={"boxes": boxes, "ask": [one, two]}, reference={"answer": answer})

    @tool
    def count(self, shelf: str) -> int:
        """Count the boxes on a shelf."""
        return self.task.setup["boxes"][shelf]

    def get_reward(self, answer):
        return answer == self.task.reference["answer"]

    def solve(self):
        one, two = self.task.setup["ask"]
        first = yield self.count.call(one)
        second = yield self.count.call(two)
        return str(int(first) + int(second))
