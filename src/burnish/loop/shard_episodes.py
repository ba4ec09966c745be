"""How a shard's episodes are played: in the world's environments, here or in host processes, or by a user's program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits
from burnish.core.trajectory import Trajectory
from burnish.environments.hosted import HostPool
from burnish.loop.policy import fit_limits
from burnish.loop.served import ServedSampler
from burnish.loop.worlds import World
from burnish.policies.chat import ChatRenderer
from burnish.policies.sampler import EmbeddedSampler
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.pool import Roll, episode_roll
from burnish.rollout.programs import Program, program_roll, run_programs
from burnish.rollout.proxy import CaptureServer
from burnish.rollout.runner import run_episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSetting:
    """What an episode may spend, and who plays and grades it.

    hosts: processes that the environments live in, 0 for the shard's own.  program: plays the episodes in place of the
    environment.  `EpisodeSetting(limits=Limits(max_turns=4), grader_timeout_s=30.0)`
    """

    limits: Limits
    grader_timeout_s: float
    hosts: int = 0
    program: Program | None = None


class EpisodePlayer:
    """Plays episodes with one sampler, all at once (`play`) or one by one (`open`).

    make: makes the environment of an episode.  limits: those of the setting, cut to what the sampler can see.  sampler:
    draws the actions.
    """

    def __init__(
        self, setting: EpisodeSetting, *, world: World, renderer: ChatRenderer, sampler: EmbeddedSampler | ServedSampler
    ) -> None:
        self._hosts = HostPool(world.source, hosts=setting.hosts, limits=world.limits) if setting.hosts else None
        self.make = self._hosts.make if self._hosts is not None else world.make
        self.limits = fit_limits(setting.limits, sampler.max_positions)
        self._program = setting.program
        self._proxy: CaptureServer | None = None
        self._renderer = renderer
        self.sampler = sampler

    async def play(self, plans: Sequence[EpisodePlan], params: SamplingParams) -> list[Trajectory]:
        """Run these episodes to their ends; trajectories in the order of the plans."""
        renderer, sampler, limits = self._renderer, self.sampler, self.limits
        if self._program is not None:
            return await run_programs(
                plans, program=self._program, renderer=renderer, sampler=sampler, params=params, limits=limits
            )
        return await run_episodes(
            plans, make_environment=self.make, renderer=renderer, sampler=sampler, params=params, limits=limits
        )

    async def open(self, params: SamplingParams) -> Roll:
        """What plays one episode of a pool; `leave` once the pool is closed."""
        renderer, sampler, limits = self._renderer, self.sampler, self.limits
        if self._program is None:
            return episode_roll(
                make_environment=self.make, renderer=renderer, sampler=sampler, params=params, limits=limits
            )
        self._proxy = await CaptureServer().__aenter__()
        return program_roll(
            self._proxy, program=self._program, renderer=renderer, sampler=sampler, params=params, limits=limits
        )

    async def leave(self) -> None:
        """End what `open` began."""
        if self._proxy is not None:
            await self._proxy.__aexit__()
            self._proxy = None

    def close(self) -> None:
        """End the hosts."""
        if self._hosts is not None:
            self._hosts.close()
