"""The printed tables, each at most 80 columns wide."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fault_runs.acting import Acting
from fault_runs.cache import Replay
from fault_runs.detectors import Terms
from fault_runs.scoring import Pair, Score, gain_since_onset, own_steps


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def detector_table(scores: Sequence[Score]) -> Table:
    """Detection, false alarms, lead and attribution of every detector."""
    table = new_table("detectors", "detector", "detected", "false / 1000 steps", "lead", "named", "threshold")
    for score in scores:
        rate, (low, high) = score.detected, score.quiet.interval
        table.add_row(
            score.name,
            "-" if rate is None else f"{rate.mean:.0%} {rate.low:.0%}-{rate.high:.0%}",
            f"{score.quiet.per_1000:.2f} {low:.2f}-{high:.2f}",
            "-" if score.lead is None else f"{score.lead:+.0f}",
            "-" if score.attributed is None or score.name != "burnish" else f"{score.attributed:.0%}",
            f"{score.threshold:.3g}",
        )
    return table


def fault_table(pairs: Sequence[Pair], ours: Score, best: Score | None) -> Table:
    """By kind: how bad it was, and who saw it when."""
    table = new_table("faults", "kind", "dose", "runs", "gap", "damage at", "ours", "lead", "best", "lead")
    for kind in sorted({pair.changed.spec.kind for pair in pairs}):
        mine = [pair for pair in pairs if pair.changed.spec.kind == kind]
        dates = [pair.damaged_at for pair in mine if pair.damaged_at is not None]
        cells = []
        for score in (ours, best):
            hits = [item for item in score.caught if item.kind == kind] if score else []
            seen = sum(item.alarm is not None for item in hits)
            cells += [f"{seen}/{len(hits)}", f"{statistics.median(i.lead for i in hits):+.0f}" if hits else "-"]
        gap = 100 * statistics.fmean(pair.gap for pair in mine)
        date = f"{statistics.median(dates):.0f}" if dates else "never"
        table.add_row(kind, f"{mine[0].changed.spec.dose:g}", str(len(mine)), f"{gap:+.0f}", date, *cells)
    return table


def apart_table(harmless: Sequence[Pair], hard: Sequence[Replay], doses: Mapping[str, Mapping[str, Any]]) -> Table:
    """What is not scored: faults without damage, and faults that an invariant stops."""
    table = new_table("not scored", "kind", "dose", "runs", "what happened")
    for kind in sorted({pair.changed.spec.kind for pair in harmless}):
        mine = [pair for pair in harmless if pair.changed.spec.kind == kind]
        gap = 100 * statistics.fmean(pair.gap for pair in mine)
        status = doses.get(kind, {}).get("status", "untuned")
        table.add_row(kind, f"{mine[0].changed.spec.dose:g}", str(len(mine)), f"{status}, gap {gap:+.0f} points")
    for kind in sorted({replay.spec.kind for replay in hard}):
        ended = Counter(replay.ended.partition(":")[0] for replay in hard if replay.spec.kind == kind)
        for how, count in ended.items():
            table.add_row(kind, "", str(count), f"stopped by {how}" if how != "finished" else "NOT STOPPED")
    return table


def healthy_table(healthy: Sequence[Replay], score: Score, terms: Terms) -> Table:
    """By kind: monitored steps, our false alarms, and whether success held: at the end minus at the onset."""
    table = new_table("healthy runs", "kind", "runs", "monitored steps", "false alarms", "success since the onset")
    for kind in sorted({replay.spec.kind for replay in healthy}):
        mine = [replay for replay in healthy if replay.spec.kind == kind]
        steps = sum(len(own_steps(replay, terms)) for replay in mine)
        alarms = sum(alarm.kind == kind for alarm in score.false_alarms)
        gains = [gain for replay in mine if (gain := gain_since_onset(replay)) is not None]
        since = f"{100 * min(gains):+.0f} to {100 * max(gains):+.0f} points" if gains else "-"
        table.add_row(kind or "twin", str(len(mine)), str(steps), str(alarms), since)
    return table


def published_table(counts: Mapping[str, tuple[int, int]]) -> Table:
    """Runs in which the published rules of the Post-Training Toolkit fire at all."""
    table = new_table("PTT rules (not ranked)", "runs", "with an alarm")
    for name, (fired, total) in counts.items():
        table.add_row(name, f"{fired} of {total}")
    return table


def acting_table(found: Sequence[Acting]) -> Table:
    """Success at the end against the healthy twin, in points."""
    table = new_table("acting against watching", "kind", "seeds", "watching", "acting", "95% interval", "actions")
    for item in found:
        estimate = item.acting
        table.add_row(
            item.kind or "(healthy)",
            str(estimate.n),
            "-" if item.watching is None else f"{100 * item.watching:+.0f}",
            f"{100 * estimate.mean:+.0f}",
            f"{100 * estimate.low:+.0f} to {100 * estimate.high:+.0f}",
            ", ".join(f"{name} {count}" for name, count in item.actions.items())[:24],
        )
    return table
