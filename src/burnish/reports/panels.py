"""Which signals of the health room the page shows, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

TAILS = "Tails of the ratios"
SAMPLE = "Effective sample size and concentration"
AGENT = "Agent"
LEARNING = "Learning signal"
FLOOR_SHARE = 0.5
"""Of the entropy of the first steps, as control takes it (`LadderSpec.entropy_floor_share`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart of stored scalars; one that the run lacks is left out, and so is a panel of none.

    lines: (scalar, title); of two with the same title the first that the run has is shown.  An asterisk in a scalar
    stands for any name, and in its title for that name.  share: shown in percent.  floor_of: a scalar under whose usual
    early value, times `FLOOR_SHARE`, it should not fall.

    `Panel(id="gini", group="...", title="Gini", lines=(("health/gini_update", "Gini"),))`
    """

    id: str
    group: str
    title: str
    lines: tuple[tuple[str, str], ...]
    note: str = ""
    share: bool = False
    floor_of: str = ""

    def known(self, names: Mapping[str, object]) -> list[tuple[str, str]]:
        """(scalar, title) of the lines that the run has.

        >>> panel = Panel(id="tools", group="", title="", lines=(("health/tool:*/m2", "*"),))
        >>> panel.known({"health/tool:search/m2": 1, "health/text/m2": 2})
        [('health/tool:search/m2', 'search')]
        """
        found: list[tuple[str, str]] = []
        for pattern, title in self.lines:
            if "*" not in pattern:
                matches = [(pattern, title)] if pattern in names else []
            else:
                head, tail = pattern.split("*", 1)
                matches = [
                    (name, title.replace("*", name[len(head) : len(name) - len(tail)]))
                    for name in sorted(names)
                    if fnmatchcase(name, pattern)
                ]
            titles = {title for _, title in found}
            found += [(name, text) for name, text in matches if text not in titles]
        return found


def _tails(ratio: str, figure: str) -> tuple[tuple[str, str], ...]:
    slices = {
        "text": "text",
        "post_tool": "after a tool",
        "post_tool_first": "first turn after",
        "post_tool_later": "later after",
        "post_tool_error": "after an error",
        "control": "control tokens",
    }
    return tuple((f"health/{name}/log_ratio_{ratio}_{figure}", title) for name, title in slices.items())


_MEANT = "Absolute log-ratio of learner to {} in nats, raw: above it lie {} of the tokens of a slice."

PANELS: tuple[Panel, ...] = (
    Panel(
        id="behaviour-p95",
        group=TAILS,
        title="Behaviour ratio, 95th percentile",
        note=_MEANT.format("sampler", "5%"),
        lines=_tails("behaviour", "p95")[:2],
    ),
    Panel(
        id="behaviour-p99",
        group=TAILS,
        title="Behaviour ratio, 99th percentile",
        note=_MEANT.format("sampler", "1%"),
        lines=_tails("behaviour", "p99")[:2],
    ),
    Panel(
        id="behaviour-slices",
        group=TAILS,
        title="Behaviour ratio, 95th percentile, by finer slice",
        note="First and later turns after a tool result, after a tool error, and tokens of calls and ends of turns.",
        lines=_tails("behaviour", "p95")[2:],
    ),
    Panel(
        id="behaviour-tools",
        group=TAILS,
        title="Behaviour ratio, 95th percentile, by tool",
        note="Turns that stand right after a result of the tool.",
        lines=(("health/tool:*/log_ratio_behaviour_p95", "*"),),
    ),
    Panel(
        id="proximal-p95",
        group=TAILS,
        title="Proximal ratio, 95th percentile",
        note=_MEANT.format("the policy that the trust region is around", "5%"),
        lines=_tails("proximal", "p95")[:2],
    ),
    Panel(
        id="reference-p95",
        group=TAILS,
        title="Reference ratio, 95th percentile",
        note=_MEANT.format("reference", "5%"),
        lines=_tails("reference", "p95")[:2],
    ),
    Panel(
        id="ess-sequence",
        group=SAMPLE,
        title="Effective sample size, sequences",
        note="Share of the trajectories, learner / behaviour. Normalised: against the run's own early steps, "
        "which is what control looks at. A clip hides a collapse from the clipped one.",
        lines=(
            ("health/ess_sequence_raw", "raw"),
            ("health/ess_sequence_clipped", "clipped"),
            ("health/ess_sequence_normalised", "normalised"),
        ),
        share=True,
    ),
    Panel(
        id="ess-token",
        group=SAMPLE,
        title="Effective sample size, tokens",
        note="Share of the tokens of the slice, learner / behaviour.",
        lines=(
            ("health/text/ess_token_raw", "text, raw"),
            ("health/post_tool/ess_token_raw", "after a tool, raw"),
            ("health/text/ess_token_clipped", "text, clipped"),
            ("health/post_tool/ess_token_clipped", "after a tool, clipped"),
        ),
        share=True,
    ),
    Panel(
        id="concentration",
        group=SAMPLE,
        title="Concentration of the update",
        note="Over trajectories, by the size of what each adds: 0 where all add the same. Top 5%: their share.",
        lines=(("health/gini_update", "Gini"), ("health/top5_update", "top 5%")),
        share=True,
    ),
    Panel(
        id="post-tool-share",
        group=AGENT,
        title="Post-tool share",
        note="Share of the trained tokens that stand after a tool result.",
        lines=(("health/post_tool_share", "after a tool"),),
        share=True,
    ),
    Panel(
        id="tool-errors",
        group=AGENT,
        title="Tool errors and retries",
        note="Share of the calls that end in an error, and of those made again after one.",
        lines=(("health/tool_error_rate", "errors"), ("health/retry_rate", "retries")),
        share=True,
    ),
    Panel(
        id="length",
        group=AGENT,
        title="Length",
        note="Sampled tokens of a trajectory.",
        lines=(("health/length_mean", "mean"),),
    ),
    Panel(
        id="truncated",
        group=AGENT,
        title="Cut by a limit",
        note="Share of the trajectories.",
        lines=(("health/truncated_share", "cut"),),
        share=True,
    ),
    Panel(
        id="entropy",
        group=LEARNING,
        title="Entropy",
        note="Of the learner, in nats per token. The floor is half of what it was in the first steps.",
        lines=(
            ("health/all/entropy", "all"),
            ("health/entropy", "all"),
            ("health/text/entropy", "text"),
            ("health/post_tool/entropy", "after a tool"),
        ),
        floor_of="health/all/entropy",
    ),
    Panel(
        id="zero-signal",
        group=LEARNING,
        title="Groups without signal",
        note="Share of the groups whose members all have the same reward.",
        lines=(("health/zero_signal_share", "without signal"),),
        share=True,
    ),
    Panel(
        id="outcome",
        group=LEARNING,
        title="Reward, success and progress",
        note="Progress is graded evidence that is never part of the reward: reward that rises without it is suspect.",
        lines=(
            ("health/reward_mean", "reward"),
            ("health/success_mean", "success"),
            ("health/progress_mean", "progress"),
            ("health/outcome_contrast", "contrast within groups"),
        ),
    ),
    Panel(
        id="agreement",
        group=LEARNING,
        title="Reward against progress",
        note="Share of the trajectories that failed after getting all the way, and that succeeded without getting half "
        "of it: signs of a broken grader and of a hacked one.",
        lines=(
            ("health/failed_despite_progress", "failed all the same"),
            ("health/succeeded_without_progress", "succeeded all the same"),
        ),
        share=True,
    ),
    Panel(
        id="source-noise",
        group=LEARNING,
        title="Spread of the reward, by source",
        note="Standard deviation over the trajectories of a source.",
        lines=(("health/source:*/reward_sd", "*"),),
    ),
    Panel(
        id="input-dependence",
        group=LEARNING,
        title="Dependence on the question",
        note="How often an answer is likeliest under its own question; above chance: 0% where it could be any.",
        lines=(("health/input_retrieval", "own question wins"), ("health/input_dependence", "above chance")),
        share=True,
    ),
    Panel(
        id="staleness",
        group=LEARNING,
        title="Staleness",
        note="Learner version minus the version that sampled the token, mean.",
        lines=(("health/staleness_mean", "versions"),),
    ),
)
