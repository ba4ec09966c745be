"""GRPO with nothing hidden: from a stored batch of episodes to new weights, in plain torch.

    python examples/raw_loop.py RUN/model RUN/segments/SEGMENT.parquet --steps 3 --learning-rate 3e-4

The library does the same with less waste (it packs, skips logits that nobody asked for, shards over processes and can
be resumed); this file is here to be read.  It uses no part of the library.  Every step does, over one batch of groups:

1. advantage of an episode: A = reward - mean reward of its group (a group whose rewards are all equal is skipped)
2. log pi(y_t) of every token that the policy had sampled, under the weights as they are now
3. ratio r_t = exp(log pi(y_t) - stored log-probability at sampling time)
4. loss = -sum_t min(r_t A, clip(r_t, 1 - low, 1 + high) A) / number of sampled tokens in the batch
5. gradient, clipped to norm 1, and one AdamW update

Formulas: GRPO, arXiv 2402.03300; clipping and averaging as in DAPO, arXiv 2503.14476; AdamW, arXiv 1711.05101.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

# ---------------------------------------------------------------------------------------------------- the stored batch


def read_rows(segments):
    """The rows that were trained on: one dictionary for each episode.

    Of the stored columns these are used:
      trajectory_id, group_id     which episode, and which episodes share a baseline
      reward                      a number, or None where the episode failed for reasons that are not the policy's
      fate                        what became of it; "trained" is what we want, "filtered" groups had no signal
      token_ids                   every token of the episode, node after node
      action_mask                 1 where the policy sampled the token, 0 where it was shown (prompt, tool results)
      logprobs                    natural logarithm of the probability with which it was sampled (NaN elsewhere)
      nodes                       the message graph: for each node its parent (-1 for a root) and its number of tokens
    """
    import pyarrow.parquet

    rows = []
    for segment in segments:
        rows += pyarrow.parquet.read_table(segment).to_pylist()
    return [row for row in rows if row["fate"] == "trained" and row["reward"] is not None]


def paths(row):
    """Yield each root-to-leaf path of the message graph as (token_ids, trained, logprobs).

    An episode whose every turn extends the one before is a single path.  Where the conversation had to be rendered anew
    the graph forks; a node on two paths is trained on the first of them only.
    """
    starts, position = [], 0
    for node in row["nodes"]:
        starts.append(position)
        position += node["n_tokens"]
    parents = [node["parent"] for node in row["nodes"]]
    seen = set()
    for leaf in range(len(parents)):
        if leaf in parents:
            continue
        chain, node = [], leaf
        while node >= 0:
            chain.append(node)
            node = parents[node]
        token_ids, trained, logprobs = [], [], []
        for node in reversed(chain):
            for index in range(starts[node], starts[node] + row["nodes"][node]["n_tokens"]):
                token_ids.append(row["token_ids"][index])
                trained.append(bool(row["action_mask"][index]) and node not in seen)
                logprobs.append(row["logprobs"][index])
            seen.add(node)
        yield token_ids, trained, logprobs


def advantages(rows):
    """Reward minus the mean reward of the group, by trajectory id; groups without signal are left out."""
    groups = {}
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row)
    result = {}
    for members in groups.values():
        rewards = [member["reward"] for member in members]
        mean = math.fsum(rewards) / len(rewards)
        if max(rewards) - min(rewards) > 1e-9:
            for member in members:
                result[member["trajectory_id"]] = member["reward"] - mean
    return result


def make_batch(rows):
    """Every trained path as a dictionary with tensors: ids [T], where [N] (columns of the sampled tokens), old [N]."""
    advantage = advantages(rows)
    batch = []
    for row in rows:
        if row["trajectory_id"] not in advantage:
            continue
        for token_ids, trained, logprobs in paths(row):
            where = [column for column, flag in enumerate(trained) if flag]
            if where:
                batch.append(
                    {
                        "ids": torch.tensor(token_ids),
                        "where": torch.tensor(where),
                        "old": torch.tensor([logprobs[column] for column in where]),
                        "advantage": advantage[row["trajectory_id"]],
                    }
                )
    return batch


# --------------------------------------------------------------------------------------------------------- the loss


def token_logprobs(model, ids, where, temperature):
    """Log-probability of the token in each column of `where`, given everything before it."""
    logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0] / temperature
    # The logits in column t are the prediction of the token in column t + 1.
    return torch.log_softmax(logits[where - 1], dim=-1)[torch.arange(len(where)), ids[where]]


def batch_loss(model, batch, temperature, clip_low, clip_high):
    """The loss of the whole batch as a number; its gradient is left in the `.grad` of the parameters."""
    sampled_tokens = sum(len(path["where"]) for path in batch)
    total = 0.0
    for path in batch:
        new = token_logprobs(model, path["ids"], path["where"], temperature)
        ratio = torch.exp(new - path["old"])
        clipped = torch.clamp(ratio, 1.0 - clip_low, 1.0 + clip_high)
        advantage = path["advantage"]
        loss = -torch.minimum(ratio * advantage, clipped * advantage).sum() / sampled_tokens
        # One path at a time: the gradients add up, and only one path's activations are in memory.
        loss.backward()
        total += loss.item()
    return total


# ---------------------------------------------------------------------------------------------------- the optimizer


def clip_gradients(parameters, limit):
    """Scale all gradients down together so that their joint norm is at most `limit`; returns the norm before."""
    norm = math.sqrt(sum(parameter.grad.double().square().sum().item() for parameter in parameters))
    if norm > limit:
        for parameter in parameters:
            parameter.grad.mul_(limit / (norm + 1e-6))
    return norm


@torch.no_grad()
def adamw(parameters, moments, step, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """One update in place, without weight decay.  `moments` holds two running averages for each parameter."""
    for parameter, (first, second) in zip(parameters, moments, strict=True):
        gradient = parameter.grad
        first.mul_(beta1).add_((1.0 - beta1) * gradient)
        second.mul_(beta2).add_((1.0 - beta2) * gradient * gradient)
        first_unbiased = first / (1.0 - beta1**step)
        second_unbiased = second / (1.0 - beta2**step)
        parameter.sub_(learning_rate * first_unbiased / (second_unbiased.sqrt() + epsilon))
        parameter.grad = None


# --------------------------------------------------------------------------------------------------------- the loop


def train(model, rows, *, steps, learning_rate, temperature=1.0, clip_low=0.2, clip_high=0.28, max_grad_norm=1.0):
    """Take `steps` steps on the same batch of rows; yields (loss, gradient norm) of each.  Changes `model` in place."""
    model.eval()  # no dropout: the first ratio of fresh samples is exactly 1
    batch = make_batch(rows)
    if not batch:
        raise SystemExit("no group in this batch has two different rewards; there is nothing to learn from it")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
    for step in range(1, steps + 1):
        loss = batch_loss(model, batch, temperature, clip_low, clip_high)
        norm = clip_gradients(parameters, max_grad_norm)
        adamw(parameters, moments, step, learning_rate)
        yield loss, norm


def main():
    parser = argparse.ArgumentParser(description="GRPO with nothing hidden, on a stored batch")
    parser.add_argument("model", type=Path, help="a Hugging Face folder: the weights that sampled the batch")
    parser.add_argument("segments", type=Path, nargs="+", help="Parquet segments of a run")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="where to save the new weights")
    arguments = parser.parse_args()

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    options = {"learning_rate": arguments.learning_rate, "temperature": arguments.temperature}
    rows = read_rows(arguments.segments)
    for step, (loss, norm) in enumerate(train(model, rows, steps=arguments.steps, **options), start=1):
        print(f"step {step}: loss {loss:+.6f}, gradient norm {norm:.4f}")
    if arguments.out:
        model.save_pretrained(arguments.out)
        print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
