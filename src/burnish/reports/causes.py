"""What can be wrong with a run, and by which findings it shows: the table behind `burnish why`.

Monitors, kinds and slices are patterns over the names of docs/health.md; a monitor is a signal without its "health/".
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = ("*",)
DAMAGE = "held-out success"
"""Stands for a scalar in a circumstance: moved down where held-out success clearly fell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A finding that speaks for a cause, by any of the monitors or of the kinds that are named.

    weight: 3 all but names the cause, 2 the cause is expected to show so, 1 it often does.  direction: 1 or -1 where
    the signal has to rise or fall, 0 where either does.

    `Sign(monitors=("post_tool*/log_ratio_*",), direction=1, weight=3)`
    """

    weight: int
    monitors: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    direction: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstance:
    """A stored scalar that moved (direction 1 or -1) or did not (0) since the onset; the first that is stored counts.

    weight: added to the score where it holds; negative where it speaks against the cause.

    `Circumstance(scalars=("staleness/mean",), direction=1, weight=2, text="the tokens got older")`
    """

    scalars: tuple[str, ...]
    direction: int
    weight: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A cause: what it means, how it shows, where to look, and what to do.

    advice: (recipe key or command, why), what to try first standing first.

    `Cause(key="no_signal", title="...", meaning="...", signs=(Sign(monitors=("zero_signal_share",), weight=3),),
    look="...", advice=(("rl.groups", "..."),))`
    """

    key: str
    title: str
    meaning: str
    signs: tuple[Sign, ...]
    look: str
    advice: tuple[tuple[str, str], ...]
    circumstances: tuple[Circumstance, ...] = ()


_STALENESS = ("staleness/mean", "health/staleness_mean")
_TEXT_TAIL = ("health/text/log_ratio_behaviour_p95",)
_POST_TOOL_TAIL = ("health/post_tool/log_ratio_behaviour_p95",)
_SHARE = ("health/post_tool_share",)
_PROXIMAL_TAIL = ("health/all/log_ratio_proximal_p95", "health/text/log_ratio_proximal_p95")
_REWARD = ("health/reward_mean", "reward/mean")
_PROGRESS = ("health/progress_mean",)
_ENTROPY = ("health/all/entropy", "health/entropy", "entropy_nats_mean")
_ESS = ("ess_sequence_raw*", "ess_sequence_normalised", "ess_sequence_clipped*", "ess_token_*", "*/ess_token_*")
_TEXT_ENTROPY = ("health/text/entropy",)
_VARIANCE = ("ess_sequence_variance_per_token*",)
_ANY_ENTROPY = ("entropy*", "all/entropy*")
_LENGTH = ("health/length_mean", "tokens/per_episode")
_SUCCESS = ("success_drawdown", "success_shortfall")
_TOOL_ERRORS = ("health/tool_error_rate",)


def _tails(*slices: str, ratio: str = "behaviour") -> tuple[str, ...]:
    return tuple(f"{name}/{figure}_{ratio}*" for name in slices for figure in ("log_ratio", "m2", "k3", "chi2"))


CAUSES: tuple[Cause, ...] = (
    Cause(
        key="non_finite",
        title="numbers that are not finite",
        meaning="A raw value was NaN or infinite, or a ratio overflowed. What is computed from it is worthless.",
        signs=(Sign(kinds=("non_finite", "overflow"), weight=3),),
        look="the trajectories that held it, and the step before",
        advice=(
            ("rl.lr", "a rate that is too high is the usual source"),
            ("model.dtype", "float32 rules out overflow"),
        ),
    ),
    Cause(
        key="stale_data",
        title="stale data",
        meaning="Trained tokens were sampled by policies too many versions old: their weights spread, few count.",
        signs=(
            Sign(monitors=("staleness_mean", "staleness/*"), kinds=("staleness",), direction=1, weight=3),
            Sign(monitors=_ESS, direction=-1, weight=2),
            Sign(monitors=_tails("text"), direction=1, weight=2),
            Sign(monitors=_tails("all"), direction=1, weight=1),
            Sign(monitors=_tails("post_tool*"), direction=1, weight=1),
            Sign(monitors=_VARIANCE, direction=1, weight=2),
        ),
        circumstances=(
            Circumstance(scalars=_TEXT_TAIL, direction=0, weight=-2, text="against it, text is as likely as before"),
            Circumstance(scalars=_STALENESS, direction=1, weight=3, text="the tokens got older"),
            Circumstance(
                scalars=_STALENESS, direction=0, weight=-3, text="against it, the tokens are as old as before"
            ),
        ),
        look="the curves of staleness, and which workers are slow",
        advice=(
            ("rollout.max_staleness", "lower the bound"),
            ("rl.correction", "truncate or mask the weights of old tokens"),
        ),
    ),
    Cause(
        key="engine_mismatch",
        title="sampler and learner disagree",
        meaning="The engine that samples and the learner give other probabilities for the same weights and tokens.",
        signs=(
            Sign(monitors=_tails("staleness:0"), direction=1, weight=3),
            Sign(monitors=("check/ratio_nats", "check/canary_nats"), direction=1, weight=3),
            Sign(monitors=_tails("text"), direction=1, weight=2),
            Sign(monitors=_tails("all", "control"), direction=1, weight=1),
            Sign(monitors=_VARIANCE, direction=1, weight=1),
            Sign(monitors=_ESS, direction=-1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_STALENESS, direction=0, weight=1, text="the tokens are no older than before"),
            Circumstance(scalars=_STALENESS, direction=1, weight=-3, text="against it, the tokens got older"),
            Circumstance(scalars=_TEXT_TAIL, direction=0, weight=-2, text="against it, text is as likely as before"),
            Circumstance(scalars=_PROXIMAL_TAIL, direction=0, weight=1, text="the updates are no larger than before"),
            Circumstance(scalars=_PROXIMAL_TAIL, direction=1, weight=-2, text="against it, the updates grew too"),
            Circumstance(
                scalars=("check/ratio_nats",), direction=1, weight=2, text="the check on fresh samples drifted"
            ),
        ),
        look="sampling settings of both sides: temperature, top-k, top-p, dtype, quantisation, and the chat template",
        advice=(
            ("checks.logprob_tolerance", "stop as soon as they differ"),
            ("rl.correction", "weigh by the ratio until it is mended"),
        ),
    ),
    Cause(
        key="learning_rate",
        title="learning rate too high",
        meaning="Each update moves the policy further than its batch can vouch for.",
        signs=(
            Sign(monitors=("*/*_proximal*",), direction=1, weight=3),
            Sign(monitors=("grad_norm",), kinds=("learning_rate",), direction=1, weight=3),
            Sign(monitors=("reference_speed", "*/*_reference*"), kinds=("kl_drift",), direction=1, weight=2),
            Sign(monitors=_tails("text", "all"), direction=1, weight=1),
            Sign(monitors=_ESS, direction=-1, weight=1),
            Sign(monitors=_ANY_ENTROPY, direction=-1, weight=1),
            Sign(monitors=_VARIANCE, direction=1, weight=1),
            Sign(monitors=(*_SUCCESS, "setback"), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=("grad_norm",), direction=1, weight=1, text="the gradient norm rose"),
            Circumstance(scalars=_PROXIMAL_TAIL, direction=1, weight=2, text="the ratio inside the update spread"),
            Circumstance(scalars=_STALENESS, direction=1, weight=-1, text="against it, the tokens got older"),
        ),
        look="loss and gradient norm around the onset",
        advice=(
            ("rl.lr", "halve it, from a checkpoint before the onset"),
            ("rl.updates", "fewer optimizer steps on each batch"),
            ("rl.grad_clip", "a lower bound on each step"),
        ),
    ),
    Cause(
        key="tool_drift",
        title="tool results drifted",
        meaning="What follows a tool result became unlikely while text stays as it was: tools changed.",
        signs=(
            Sign(monitors=_tails("post_tool*", "tool:*"), direction=1, weight=3),
            Sign(monitors=("tool_error_rate", "tool:*/error*"), direction=1, weight=1),
            Sign(monitors=("retry_rate",), direction=1, weight=1),
            Sign(monitors=("post_tool*/entropy*", "tool:*/entropy"), direction=1, weight=2),
            Sign(monitors=("post_tool*/ess_token_*", "tool:*/ess_token_*"), direction=-1, weight=2),
            Sign(monitors=("reference_speed", "*/*_reference*"), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_TEXT_TAIL, direction=0, weight=2, text="text before any tool result is as it was"),
            Circumstance(
                scalars=_TEXT_TAIL, direction=1, weight=-3, text="against it, text before any tool result moved too"
            ),
            Circumstance(
                scalars=_POST_TOOL_TAIL, direction=0, weight=-3, text="against it, what follows a result is as before"
            ),
        ),
        look="tool results before and after the onset, side by side",
        advice=(
            ("burnish doctor ENV", "whether tools still do what they did"),
            ("limits.max_tool_result_chars", "bound what a tool may add"),
            ("control.mode", "act: caps the tail of the slice while it lasts"),
        ),
    ),
    Cause(
        key="post_tool_surge",
        title="more and more of the update follows tool results",
        meaning="The share of trained tokens that stand after a tool result grows: states the start never covered.",
        signs=(
            Sign(monitors=("post_tool_share",), direction=1, weight=3),
            Sign(monitors=_tails("post_tool*"), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_POST_TOOL_TAIL, direction=1, weight=1, text="their ratios spread as well"),
            Circumstance(scalars=_SHARE, direction=0, weight=-2, text="against it, the share is as before"),
        ),
        look="whether calls are needed, or rewarded for themselves",
        advice=(("rl.token_cost", "let needless calls cost something"), ("limits.max_turns", "bound the turns")),
    ),
    Cause(
        key="reward_hacking",
        title="reward without success",
        meaning="Reward rises and what it stands for does not: the policy found what the grader pays for by mistake.",
        signs=(
            Sign(monitors=("succeeded_without_progress",), kinds=("reward_jump",), direction=1, weight=3),
            Sign(monitors=("reward_mean", "reward/mean"), direction=1, weight=2),
            Sign(monitors=("progress_mean", "reward_progress_correlation"), direction=-1, weight=2),
            Sign(monitors=("success_mean",), direction=1, weight=1),
            Sign(monitors=("length_mean", "*/tokens", "post_tool_share"), direction=-1, weight=1),
            Sign(monitors=_ANY_ENTROPY, direction=-1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_REWARD, direction=1, weight=1, text="reward rose"),
            Circumstance(scalars=_REWARD, direction=-1, weight=-3, text="against it, reward fell"),
            Circumstance(scalars=_PROGRESS, direction=-1, weight=2, text="progress towards the answer fell"),
            Circumstance(scalars=("reward/agreement",), direction=-1, weight=2, text="it left the verifiable graders"),
            Circumstance(scalars=_PROGRESS, direction=1, weight=-2, text="against it, progress rose as well"),
            Circumstance(scalars=(DAMAGE,), direction=-1, weight=1, text="held-out success fell"),
        ),
        look="the episodes with the best rewards, read by a person",
        advice=(
            ("burnish doctor ENV", "which empty or fixed answers the grader pays for"),
            ("control.mode", "act: train on the verifiable graders alone while the reward has left them"),
            ("rl.kl_weight", "hold on to the reference meanwhile"),
        ),
    ),
    Cause(
        key="grader_failure",
        title="a grader fails in silence",
        meaning="Good answers get no reward: the grader breaks and its failures count as zero.",
        signs=(
            Sign(monitors=("failed_despite_progress",), kinds=("grader_failure",), direction=1, weight=3),
            Sign(monitors=_SUCCESS, direction=1, weight=2),
            Sign(monitors=("excluded_share",), direction=1, weight=2),
            Sign(monitors=("reward_mean", "reward/mean", "success_mean"), direction=-1, weight=2),
            Sign(monitors=("reward_progress_correlation",), direction=-1, weight=1),
            Sign(monitors=("outcome_contrast",), weight=1),
            Sign(monitors=("zero_signal_share",), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_PROGRESS, direction=0, weight=2, text="episodes get as far as before"),
            Circumstance(scalars=_PROGRESS, direction=1, weight=2, text="episodes get even further than before"),
            Circumstance(scalars=_PROGRESS, direction=-1, weight=-2, text="against it, episodes get less far too"),
            Circumstance(scalars=_REWARD, direction=1, weight=-3, text="against it, reward rose"),
            Circumstance(scalars=_REWARD, direction=0, weight=-3, text="against it, reward is as before"),
        ),
        look="episodes with a right answer and reward 0",
        advice=(
            ("burnish doctor ENV", "whether the expert's answers still score 1"),
            ("stop.max_excluded_share", "failures that are typed as such stop the run"),
        ),
    ),
    Cause(
        key="length_blow_up",
        title="answers get longer and longer",
        meaning="Episodes grow without getting better; limits cut them, and long ones outweigh the rest.",
        signs=(
            Sign(
                monitors=("length_mean", "length_p95", "length_of_*", "turns_mean", "tokens/per_episode"),
                kinds=("length_blow_up",),
                direction=1,
                weight=3,
            ),
            Sign(monitors=("truncated_share",), direction=1, weight=2),
            Sign(monitors=("gini_update", "top5_update"), direction=1, weight=1),
            Sign(monitors=("*/tokens",), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_LENGTH, direction=1, weight=1, text="episodes got longer"),
            Circumstance(
                scalars=("health/success_mean", *_REWARD),
                direction=1,
                weight=-2,
                text="against it, success rose with them",
            ),
            Circumstance(scalars=("health/truncated_share",), direction=1, weight=1, text="more of them are cut"),
        ),
        look="the longest episodes, and where they begin to repeat themselves",
        advice=(
            ("rl.token_cost", "a price for each sampled token"),
            ("limits.max_turn_tokens", "a bound on each turn"),
            ("rl.aggregation", "whether long answers weigh more than short ones"),
        ),
    ),
    Cause(
        key="template_collapse",
        title="answers no longer depend on the question",
        meaning="The same text whatever was asked; entropy can look steady all the while.",
        signs=(
            Sign(
                monitors=("input_dependence", "input_retrieval"),
                kinds=("template_collapse",),
                weight=3,
            ),
            Sign(monitors=("zero_signal_share",), direction=1, weight=1),
            Sign(monitors=("outcome_contrast",), direction=-1, weight=1),
            Sign(monitors=_ANY_ENTROPY, direction=-1, weight=1),
        ),
        circumstances=(Circumstance(scalars=_ENTROPY, direction=0, weight=1, text="entropy did not show it"),),
        look="first turns of different tasks, side by side",
        advice=(
            ("rl.filter_zero_signal", "drop groups that teach nothing"),
            ("rl.kl_weight", "hold on to the reference"),
        ),
    ),
    Cause(
        key="entropy_collapse",
        title="the policy stopped exploring",
        meaning="Entropy fell below its floor: group members are alike, and nothing is left to learn from.",
        signs=(
            Sign(
                monitors=("entropy", "all/entropy", "*entropy_floor*"), kinds=("entropy_low",), direction=-1, weight=3
            ),
            Sign(monitors=("text/entropy*", "post_tool*/entropy*", "control/entropy*"), direction=-1, weight=1),
            Sign(monitors=("zero_signal_share",), direction=1, weight=1),
            Sign(monitors=("outcome_contrast",), direction=-1, weight=1),
        ),
        look="groups whose members are the same",
        advice=(
            ("rl.temperature", "sample more widely"),
            ("rl.clip_high", "let unlikely tokens grow"),
            ("rl.lr", "lower it"),
        ),
    ),
    Cause(
        key="wrong_credit",
        title="advantages do not follow rewards",
        meaning="What is pushed up is not what was rewarded: signs are turned round, members of groups mixed up, or "
        "groups trained on whose rewards are all equal.",
        signs=(
            Sign(monitors=("advantage_agreement",), kinds=("credit",), direction=-1, weight=3),
            Sign(monitors=(*_SUCCESS, "setback"), direction=1, weight=1),
        ),
        look="reward and advantage side by side for one mixed group of a late step",
        advice=(("rl.filter_zero_signal", "on, so that groups without signal are left out"),),
    ),
    Cause(
        key="unlearning",
        title="the policy loses what it had learnt",
        meaning="Progress falls, entropy and tool errors rise, and no batch looks wrong: the weights wear off, as "
        "where they lose digits in a cast or decay too fast.",
        signs=(
            Sign(monitors=("setback",), direction=1, weight=3),
            Sign(monitors=_SUCCESS, kinds=("success_drop",), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_PROGRESS, direction=-1, weight=1, text="episodes get less far"),
            Circumstance(scalars=_ENTROPY, direction=1, weight=1, text="entropy rose"),
            Circumstance(scalars=_TOOL_ERRORS, direction=1, weight=1, text="more calls are wrong"),
            Circumstance(scalars=_TEXT_TAIL, direction=0, weight=1, text="sampler and learner agree as before"),
            Circumstance(scalars=_TEXT_TAIL, direction=1, weight=-2, text="against it, ratios spread as well"),
            Circumstance(
                scalars=("health/advantage_agreement",),
                direction=-1,
                weight=-5,
                text="against it, advantages no longer follow rewards",
            ),
            Circumstance(
                scalars=("health/reward_progress_correlation",),
                direction=-1,
                weight=-5,
                text="against it, rewards no longer follow progress",
            ),
        ),
        look="the norm of the weights, and what is done to them between two steps: casts, merges, decay",
        advice=(
            ("model.dtype", "float32 keeps small updates"),
            ("rl.weight_decay", "0 unless there is a reason"),
            ("burnish fork RUN", "from a checkpoint before the onset"),
        ),
    ),
    Cause(
        key="entropy_blow_up",
        title="output turns random",
        meaning="Entropy rose far above where it began, and success does not explain it.",
        signs=(
            Sign(monitors=_ANY_ENTROPY, kinds=("entropy_high",), direction=1, weight=3),
            Sign(monitors=(*_SUCCESS, "setback"), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_TEXT_ENTROPY, direction=0, weight=-2, text="against it, text is as sure as before"),
        ),
        look="the newest episodes: whether they still make sense",
        advice=(
            ("rl.lr", "halve it, from a checkpoint before the onset"),
            ("rl.kl_weight", "hold on to the reference"),
        ),
    ),
    Cause(
        key="source_noise",
        title="one source of tasks is noise",
        meaning="Few trajectories carry most of the update, while ratios are as they were: its rewards are noisy.",
        signs=(
            Sign(monitors=("source:*/reward_sd", "source:*/*update*"), kinds=("source_noise",), direction=1, weight=3),
            Sign(
                monitors=("gini_update", "top5_update", "top1_update", "update_departure"),
                kinds=("concentration",),
                direction=1,
                weight=3,
            ),
            Sign(monitors=("outcome_contrast", "reward_std*"), direction=1, weight=2),
            Sign(monitors=("*grad_norm*",), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(scalars=_TEXT_TAIL, direction=0, weight=1, text="ratios are as they were"),
            Circumstance(scalars=_TEXT_TAIL, direction=1, weight=-1, text="against it, ratios spread as well"),
            Circumstance(scalars=_LENGTH, direction=1, weight=-2, text="against it, episodes got longer"),
        ),
        look="rewards of each source within its groups",
        advice=(("rl.scale", "divide by the spread of the group"), ("environment.options", "weigh or drop the source")),
    ),
    Cause(
        key="control_tokens",
        title="tool-call and end-of-turn tokens collapse",
        meaning="The few tokens that open calls and end turns moved apart from the rest; formats break next.",
        signs=(
            Sign(monitors=("control/*",), weight=3),
            Sign(monitors=("tool_error_rate", "retry_rate", "*malformed*"), direction=1, weight=1),
        ),
        circumstances=(Circumstance(scalars=_TEXT_TAIL, direction=1, weight=-2, text="against it, all text moved"),),
        look="calls that cannot be read",
        advice=(
            ("rl.kl_weight", "hold on to the reference"),
            ("limits.max_malformed_calls", "end such episodes early"),
        ),
    ),
    Cause(
        key="tool_outage",
        title="tools fail",
        meaning="More calls end in an error than before. Failures of the environment are no fault of the policy.",
        signs=(
            Sign(monitors=("tool_error_rate",), kinds=("tool_errors",), direction=1, weight=3),
            Sign(monitors=("retry_rate",), direction=1, weight=2),
            Sign(monitors=("excluded_share",), kinds=("exclusion_rate",), direction=1, weight=2),
            Sign(monitors=(*_SUCCESS, "setback"), direction=1, weight=1),
            Sign(monitors=("post_tool_error/*",), direction=1, weight=1),
        ),
        circumstances=(
            Circumstance(
                scalars=_POST_TOOL_TAIL, direction=1, weight=-1, text="against it, results that do arrive drifted"
            ),
        ),
        look="error messages of the tools since the onset",
        advice=(
            ("burnish doctor ENV", "whether its tools work"),
            ("environment.hosts", "whether hosts are overloaded"),
        ),
    ),
    Cause(
        key="no_signal",
        title="groups without signal",
        meaning="All members of a group get the same reward: tasks are too hard, too easy, or not graded.",
        signs=(
            Sign(monitors=("zero_signal_share",), kinds=("zero_signal",), direction=1, weight=3),
            Sign(monitors=("outcome_contrast",), direction=-1, weight=2),
        ),
        circumstances=(
            Circumstance(scalars=_REWARD, direction=1, weight=1, text="the tasks became easy"),
            Circumstance(scalars=_ENTROPY, direction=-1, weight=-1, text="against it alone, entropy fell"),
        ),
        look="groups that are all right or all wrong",
        advice=(("rl.group_size", "more tries of each task"), ("environment.options", "harder or easier tasks")),
    ),
    Cause(
        key="sample_size",
        title="few samples carry the update",
        meaning="The effective sample size fell against its own reference; what spreads the weights is not clear.",
        signs=(
            Sign(monitors=_ESS, kinds=("ess_drop",), direction=-1, weight=2),
            Sign(monitors=_VARIANCE, direction=1, weight=2),
            Sign(monitors=("gini_update", "top5_update"), direction=1, weight=1),
        ),
        look="the trajectories with the largest weights",
        advice=(
            ("control.mode", "act: lowers the learning rate by the square root of it"),
            ("rl.correction", "truncate the weights"),
        ),
    ),
)
