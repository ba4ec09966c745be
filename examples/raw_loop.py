"""GRPO with nothing hidden: from a stored batch of episodes to new weights, in plain torch.

    python examples/raw_loop.py runs/demo-001 --step 1 --steps 3

reads the batch that the run rolled out in RL step 1 and the weights that it was rolled out with, and takes three
optimizer steps on it.  The library does the same with less waste (it packs, skips logits that nobody asked for, shards
over processes and can be resumed); this file is here to be read.  It uses no part of the library.  Every step does,
over one batch of groups:

1. advantage of an episode: A = reward - mean reward of its group (a group whose rewards are all equal is skipped),
   divided by the standard deviation of the group's rewards where the run says so
2. log pi(y_t) of every token that the policy had sampled, under the weights as they are now
3. ratio r_t = exp(log pi(y_t) - stored log-probability at sampling time)
4. loss = -sum_t min(r_t A, clip(r_t, 1 - low, 1 + high) A) / number of sampled tokens in the batch
5. gradient, clipped to norm 1, and one AdamW update

Formulas: GRPO, arXiv 2402.03300; clipping and averaging as in DAPO, arXiv 2503.14476; AdamW, arXiv 1711.05101.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
from pathlib import Path

import torch

# ---------------------------------------------------------------------------------------------------- the stored batch


def find_segment(run, step):
    """The Parquet file of an RL step, and the loss that the run stored for it.

    A step that was taken again after a resume has several rows here; the one that counts is not superseded.
    """
    database = sqlite3.connect(f"file:{run / 'control.sqlite'}?mode=ro", uri=True)
    query = "SELECT id, segment FROM steps WHERE phase = 'rl' AND step = ? AND superseded = 0"
    found = database.execute(query, (step,)).fetchone()
    if found is None:
        raise SystemExit(f"{run} has no RL step {step}")
    query = "SELECT value FROM scalars WHERE step_id = ? AND name = 'loss'"
    loss = database.execute(query, (found[0],)).fetchone()[0]
    database.close()
    return run / "segments" / found[1], loss


def read_rows(segment):
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

    rows = pyarrow.parquet.read_table(segment).to_pylist()
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


def advantages(rows, divide_by_std):
    """Reward minus the mean reward of the group, by trajectory id; groups without signal are left out."""
    groups = {}
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row)
    result = {}
    for members in groups.values():
        rewards = [member["reward"] for member in members]
        mean = math.fsum(rewards) / len(rewards)
        if max(rewards) - min(rewards) > 1e-9:
            variance = math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)
            scale = math.sqrt(variance) + 1e-6 if divide_by_std else 1.0
            for member in members:
                result[member["trajectory_id"]] = (member["reward"] - mean) / scale
    return result


def make_batch(rows, divide_by_std):
    """Every trained path as a dictionary with tensors: ids [T], where [N] (columns of the sampled tokens), old [N]."""
    advantage = advantages(rows, divide_by_std)
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


# ------------------------------------------------------------------------------------------ the weights it started from


def read_settings(run):
    """The run's RL settings; says so where they ask for more than this file has."""
    recipe = json.loads((run / "manifest.json").read_text())["recipe"]
    unset = {"aggregation": "token", "clip_low": 0.2, "clip_high": 0.28}
    settings = {key: unset.get(key) if value is None else value for key, value in recipe["rl"].items()}
    plain = {"loss": "grpo", "aggregation": "token", "baseline": "mean", "kl_weight": 0.0, "updates": 1}
    plain |= {"top_p": 1.0, "top_k": 0, "token_cost": 0.0}
    plain |= {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "shuffle_rewards": False}
    for key, value in plain.items():
        if settings[key] != value:
            raise SystemExit(f"{run} was trained with rl.{key}={settings[key]}; this loop knows only {value}")
    if recipe["rollout"]["mode"] != "sync" or settings["correction"] not in ("auto", "none"):
        raise SystemExit(f"{run} was trained on samples of older policies; this loop knows only fresh ones")
    if recipe["model"]["lora"]["rank"] > 0:
        raise SystemExit(f"{run} trained adapters; this loop trains all weights")
    return settings


def read_checkpoint(run, step):
    """The model and the optimizer's moments as they were before RL step `step`."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = run / "checkpoints" / f"rl-{step - 1:06d}"
    if not folder.is_dir():
        found = sorted(int(path.name[3:]) + 1 for path in (run / "checkpoints").glob("rl-*"))
        listed = ", ".join(map(str, found)) or "none"
        raise SystemExit(f"no checkpoint of the weights before step {step} is kept; steps that have one: {listed}")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run / "model"), dtype=torch.float32)
    # A tied output layer is stored once, under the name of the embedding.
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"{folder} is of another model: {missing or unexpected}")
    return model, load_file(folder / "optimizer.safetensors")


# --------------------------------------------------------------------------------------------------------- the loop


def train(model, rows, settings, optimizer, *, steps):
    """Take `steps` steps on the same batch of rows; yields (loss, gradient norm) of each.  Changes `model` in place.

    settings: lr, temperature, clip_low, clip_high, grad_clip and scale ("std" or "none").  optimizer: the state that
    a checkpoint stores: "steps" taken before, and for each parameter its two moments once there were any.
    """
    model.eval()  # no dropout: the first ratio of fresh samples is exactly 1
    batch = make_batch(rows, settings["scale"] == "std")
    if not batch:
        raise SystemExit("no group in this batch has two different rewards; there is nothing to learn from it")
    parameters, moments = [], []
    for name, parameter in model.named_parameters():
        parameters.append(parameter)
        stored = [optimizer.get(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")]
        moments.append([torch.zeros_like(parameter) if tensor is None else tensor.clone() for tensor in stored])
    before = int(optimizer.get("steps", 0))
    for step in range(before + 1, before + steps + 1):
        loss = batch_loss(model, batch, settings["temperature"], settings["clip_low"], settings["clip_high"])
        norm = clip_gradients(parameters, settings["grad_clip"])
        adamw(parameters, moments, step, settings["lr"])
        yield loss, norm


def main():
    parser = argparse.ArgumentParser(description="GRPO with nothing hidden, on a stored batch")
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--step", type=int, default=1, help="the RL step whose batch to train on (default: 1)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps to take on it (default: 3)")
    parser.add_argument("--out", type=Path, help="where to save the new weights as a Hugging Face folder")
    arguments = parser.parse_args()
    settings = read_settings(arguments.run)
    segment, stored_loss = find_segment(arguments.run, arguments.step)
    model, optimizer = read_checkpoint(arguments.run, arguments.step)
    rows = read_rows(segment)
    print(f"{len(rows)} episodes of RL step {arguments.step}; the run itself stored a loss of {stored_loss:+.6f}")
    for step, (loss, norm) in enumerate(train(model, rows, settings, optimizer, steps=arguments.steps), start=1):
        print(f"step {step}: loss {loss:+.6f}, gradient norm {norm:.4f}")
    if arguments.out:
        model.save_pretrained(arguments.out)
        print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
