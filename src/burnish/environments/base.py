"""The base class of environments: an author writes `tasks`, tools and what counts as success; the rest has defaults."""

from __future__ import annotations

import difflib
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.core.environment import Script
from burnish.core.errors import BurnishError, ConfigError, TaskError
from burnish.core.grade import Grader
from burnish.core.hashing import through_json
from burnish.core.message import Message, Role
from burnish.core.pickling import copied, twin
from burnish.core.task import Limits, Task
from burnish.core.tool import Tool, Toolset, ToolSpec
from burnish.environments.tool import ToolMethod, tool_methods

REWARD_KEY = "get_reward"
REWARD_CAUSE_KEY = "get_reward_cause"
_VALUES = frozenset({str, int, float, bool, list, tuple, dict, Message})
"""What hooks nearly always give; none of these can be awaited."""
_INPUT_SHAPED = (ValueError, LookupError, ArithmeticError, AssertionError, TypeError, AttributeError)


class EnvironmentFault(BurnishError):
    """An environment broke its own contract; the episode is an environment error and carries no reward."""


class Environment:
    """A world for one episode.  Subclass it; write `tasks`, methods marked `@tool`, and `get_reward` or `graders`.

    Every method may be sync or async, except `tasks` and `solve`.  Only `tasks` must be written.

    name: what recipes and the command line call it (default: the class name in lower case).
    splits: the splits `tasks` knows.  graders: names of graders or graders (default: "get_reward" where that method is
    written, else "exact").  weights: what each of them counts, by name; None for equal shares, and one that is left out
    is heard and not counted.  grader_graph: a grader graph as data, in place of both (docs/graders.md).
    chance: success of a policy without skill, in [0, 1].  limits: what an episode may spend,
    where its task does not say.  mistakes: names of the wrong ways that `solve(mistake=...)` can go.
    lays_files: `setup` lays the files in `task.setup["extra_files"]` (path -> text) into the agent's world.

    `task` is the episode's own copy: changing it reaches no other episode.
    """

    name: ClassVar[str] = ""
    splits: ClassVar[tuple[str, ...]] = ("train", "heldout")
    graders: tuple[str | Grader, ...] = ("exact",)
    weights: Mapping[str, float] | None = None
    grader_graph: Mapping[str, Any] | None = None
    chance: float = 0.0
    limits: Limits = Limits()
    mistakes: tuple[str, ...] = ()
    lays_files: ClassVar[bool] = False

    task: Task
    _started: bool = False
    _tools: ClassVar[Mapping[str, ToolMethod[Any, Any]]] = {}
    _offers: ClassVar[dict[tuple[str, ...] | None, tuple[tuple[ToolMethod[Any, Any], ...], tuple[ToolSpec, ...]]]] = {}
    """Methods and specs of the tools that tasks of this class have offered (None: all), so that specs are the same
    objects in every episode."""

    if TYPE_CHECKING:
        # Declared so that overrides may leave parameters out and be sync or async as they like.
        setup: Callable[..., Awaitable[None] | None]
        observe: Callable[..., Any]
        respond: Callable[..., Any]
        get_reward: Callable[..., Any]
        final_state: Callable[..., Any]
        teardown: Callable[..., Awaitable[None] | None]
        solve: Callable[..., Script | str]
    else:

        def setup(self, task):
            """Build the world of `task`."""

        def observe(self):
            """The first observation: text or a message for the user's turn, or a list of messages for all of it."""
            return Message(role=Role.USER, parts=self.task.parts)

        def respond(self, text):
            """The world's answer to a turn without tool calls; None where that turn is the answer."""

        def get_reward(self, answer):
            """The reward of the episode, a number in [0, 1]; must change nothing, since it may be asked twice."""
            raise NotImplementedError

        def final_state(self):
            """What graders need beyond the messages, JSON-able."""
            return {}

        def teardown(self):
            """Release what `setup` took; called in every case."""

        def solve(self, mistake=None):
            """The expert: yields tool calls, is sent their results as text, returns the final answer."""
            raise NotImplementedError

    def tasks(self, split: str, rng: random.Random) -> Iterable[Task]:
        """The tasks of a split; all randomness from `rng`, which is seeded for the run and the split."""
        raise TaskError(f"environment {type(self).__name__} has no tasks; write tasks(self, split, rng)")

    def contradiction(self, task: Task) -> Mapping[str, Any] | None:
        """What a task's impossible twin says otherwise, as {"setup": {...}, "reference": {...}}, either left out, so
        that no honest episode can succeed; None where there is no such twin."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        if "graders" not in vars(cls) and "get_reward" in vars(cls):
            cls.graders = (REWARD_KEY,)
        cls._tools, cls._offers = tool_methods(cls), {}
        _check_class(cls)

    async def start(self, task: Task) -> Sequence[Message]:
        """Build the world of `task` and return the first messages."""
        if self._started:
            raise EnvironmentFault(f"environment {self.name} serves one episode; make a new one for each")
        self._started = True
        self.task = _private(task)
        _check_offered(self, task)
        await _resolved(self.setup(self.task))
        return _first_messages(self.task, await _resolved(self.observe()))

    def tools(self) -> Sequence[Tool]:
        """The tools of this episode: those that the task offers, else all."""
        names = None if not self._started or self.task.tools is None else tuple(self.task.tools)
        offer = self._offers.get(names)
        if offer is None:
            methods = tuple(method for name, method in self._tools.items() if names is None or name in names)
            offer = self._offers[names] = (methods, tuple(method.spec for method in methods))
        methods, specs = offer
        return Toolset(specs, lambda place: methods[place].bind(self))

    async def reply(self, message: Message) -> Sequence[Message] | None:
        """What `respond` says to a turn without tool calls, as messages."""
        answer = await _resolved(self.respond(message.text))
        return None if answer is None else _as_messages(answer, "respond")

    async def finish(self, answer: str) -> Mapping[str, Any]:
        """What `final_state` gives, and under "get_reward" the number of that method where it is written."""
        state = await _resolved(self.final_state())
        plain = _plain_state(state, self.name) if state else {}
        if _overrides(self, REWARD_KEY):
            plain |= await _judged(self, answer.strip())
        return plain

    async def close(self) -> None:
        """Release what `start` took."""
        await _resolved(self.teardown())


def has_expert(environment: Environment | type[Environment]) -> bool:
    """Whether the author wrote `solve`."""
    return _overrides(environment, "solve")


def expert_policy(environment: Any, task: Task, rng: random.Random, mistake: str | None = None) -> Script:
    """The script of the environment's own expert, or of one of its `mistakes`; the environment must be started.

    `solve` gets those of `mistake`, `rng` and `task` that its signature names.  Raises ConfigError where there is no
    expert or no such mistake.
    """
    kind = type(environment).__name__
    if not has_expert(environment):
        raise ConfigError(f"environment {kind} has no expert; write solve(self)")
    named = inspect.signature(environment.solve).parameters
    if mistake is not None and (mistake not in environment.mistakes or "mistake" not in named):
        raise ConfigError(f"expert of {kind} makes no mistake {mistake!r}; it knows {list(environment.mistakes)}")
    given = {"mistake": mistake, "rng": rng, "task": task}
    script = environment.solve(**{name: value for name, value in given.items() if name in named})
    if isinstance(script, str):
        return _answer_only(script)
    if isinstance(script, Generator):
        return script
    close = getattr(script, "close", None)
    if callable(close):
        close()
    raise ConfigError(
        f"solve of {kind} must be a generator (def, with yield) or return text, got {type(script).__name__}"
    )


def _answer_only(answer: str) -> Script:
    """The script of an expert that needs no tool."""
    return answer
    yield  # A generator without a single yield.


def _overrides(environment: Any, method: str) -> bool:
    kind = environment if isinstance(environment, type) else type(environment)
    return getattr(kind, method, None) is not getattr(Environment, method)


async def _resolved(value: Any) -> Any:
    """The value, awaited where the author's method was async."""
    if value is None or type(value) in _VALUES:
        return value
    return await value if inspect.isawaitable(value) else value


def _check_class(cls: type[Environment]) -> None:
    """What can be wrong before anything runs; hints that name later definitions are left to the first use."""
    if not (isinstance(cls.chance, (int, float)) and 0.0 <= cls.chance <= 1.0):
        raise ConfigError(f"environment {cls.__name__}: chance lies in [0, 1], got {cls.chance!r}")
    for key in ("graders", "splits", "mistakes"):
        if not isinstance(getattr(cls, key), (tuple, list)):
            raise ConfigError(f"environment {cls.__name__}: {key} is a tuple, got {getattr(cls, key)!r}; add a comma")
    for method in cls._tools.values():
        if method.hints_are_known():
            _ = method.spec


def _check_offered(environment: Environment, task: Task) -> None:
    known = environment._tools
    for name in task.tools or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {sorted(known) or 'none'}"
            raise TaskError(f"task {task.id}: environment {environment.name} has no tool {name!r}{hint}")


def _private(task: Task) -> Task:
    """A copy whose mappings an episode may change: the members of a group share one task."""
    return twin(task, setup=copied(task.setup), reference=copied(task.reference))


def _first_messages(task: Task, observed: Any) -> list[Message]:
    messages = _as_messages(observed, "observe")
    if task.system and messages[0].role is not Role.SYSTEM:
        messages.insert(0, Message.system(task.system))
    return messages


def _as_messages(value: Any, where: str) -> list[Message]:
    if isinstance(value, str):
        return [Message.user(value)]
    if isinstance(value, Message):
        return [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Message) for item in value):
        return list(value)
    raise EnvironmentFault(f"{where} returns text, a Message or a list of them, got {value!r}")


def _plain_state(state: Any, name: str) -> dict[str, Any]:
    """The state as it comes back from the store, so that a stored run grades as the live one did."""
    if not isinstance(state, Mapping):
        raise EnvironmentFault(f"final_state of {name} returns a dict, got {type(state).__name__}")
    try:
        plain: dict[str, Any] = through_json(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvironmentFault(f"final_state of {name} is not JSON-able: {error}") from None
    if REWARD_KEY in plain or REWARD_CAUSE_KEY in plain:
        raise EnvironmentFault(f"final_state of {name} uses the key {REWARD_KEY!r}, which belongs to get_reward")
    return plain


async def _judged(environment: Environment, answer: str) -> dict[str, Any]:
    """`get_reward` of the answer.  Where it raises on this answer each time and yet judges the reference answer, the
    answer is at fault: 0 with the cause named, so that no policy escapes judgement by answering what breaks it."""
    try:
        return {REWARD_KEY: await _reward(environment, answer)}
    except _INPUT_SHAPED as error:
        good = environment.task.reference.get("answer")
        if good is None or not await _raises_again(environment, answer, error) or str(good).strip() == answer:
            raise
        await _reward(environment, str(good).strip())
        cause = f"raised_on_answer:{type(error).__name__}"
        return {REWARD_KEY: 0.0, REWARD_CAUSE_KEY: cause}


async def _raises_again(environment: Environment, answer: str, error: Exception) -> bool:
    try:
        await _reward(environment, answer)
    except type(error):
        return True
    return False


async def _reward(environment: Environment, answer: str) -> float:
    value = await _resolved(environment.get_reward(answer))
    reward = float(value) if isinstance(value, Real) else math.nan
    if not 0.0 <= reward <= 1.0:
        raise EnvironmentFault(
            f"get_reward of {environment.name} returned {value!r} for the answer {answer[:80]!r}; "
            "return a number in [0, 1]"
        )
    return reward
