"""`@tool`: a method of an environment becomes something the policy may call."""

from __future__ import annotations

import inspect
from asyncio import Lock
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, get_type_hints, overload

import docstring_parser

from burnish.core.errors import ConfigError, ToolError
from burnish.core.message import ImagePart, ToolCall
from burnish.core.outcome import Owner
from burnish.core.tool import ShownResult, Tool, ToolSpec
from burnish.environments.schema import compact_json, convert, schema_of, to_json
from burnish.environments.threads import run_in_thread

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_TIMEOUT_S = 30.0
_LOCK = "_tool_lock"


class BoundTool(Generic[P, R]):
    """A tool of one environment: calls like the method it was, and makes `ToolCall`s for scripts.

    `self.count("A")` runs the method; `self.count.call(shelf="A")` is
    `ToolCall(id="call_0", name="count", arguments={"shelf": "A"})`.
    """

    __slots__ = ("_environment", "_method")

    def __init__(self, method: ToolMethod[P, R], environment: Any) -> None:
        self._method = method
        self._environment = environment

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._method.function(self._environment, *args, **kwargs)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> ToolCall:
        """The call as a policy would ask for it; arguments by position get their names.

        Raises TypeError where the arguments do not fit the signature.
        """
        bound = self._method.signature.bind(self._environment, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        return ToolCall(id="call_0", name=self._method.name, arguments=to_json(arguments))

    @property
    def spec(self) -> ToolSpec:
        """What the policy is told."""
        return self._method.spec

    @property
    def tool(self) -> Tool:
        """The tool as rollouts use it."""
        return self._method.bind(self._environment)


class ToolMethod(Generic[P, R]):
    """What `@tool` leaves on the class.  The schema is read from hints and docstring once, at first use."""

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], R],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_timeout: Literal["environment", "model"] = "environment",
        inline: bool = False,
        parallel: bool = False,
    ) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", "tool")
        self.signature = _checked_signature(function)
        self._required = frozenset(
            parameter.name
            for parameter in list(self.signature.parameters.values())[1:]
            if parameter.default is parameter.empty
        )
        self.is_async = inspect.iscoroutinefunction(function)
        self.inline = inline
        self.parallel = parallel
        self.timeout_s = timeout_s
        self.timeout_owner = _owner(on_timeout, self.where)
        if not timeout_s > 0:
            raise ConfigError(f"{self.where}: timeout_s must be above 0, got {timeout_s!r}")
        self._spec: ToolSpec | None = None
        self._hints: dict[str, Any] | None = None
        update_wrapper(self, function)  # type: ignore[arg-type]

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> ToolMethod[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BoundTool[P, R]: ...
    def __get__(self, instance: object | None, owner: type) -> ToolMethod[P, R] | BoundTool[P, R]:
        return self if instance is None else BoundTool(self, instance)

    @property
    def where(self) -> str:
        """The name that errors use, such as "tool Warehouse.count"."""
        return f"tool {getattr(self.function, '__qualname__', self.name)}"

    @property
    def spec(self) -> ToolSpec:
        """Name, description and JSON Schema.  Raises ConfigError where a hint cannot be read or has no JSON form."""
        if self._spec is None:
            self._spec = _make_spec(self)
        return self._spec

    @property
    def hints(self) -> Mapping[str, Any]:
        """Type hint of each parameter, `self` left out.  Raises ConfigError where a name in one is not known."""
        if self._hints is None:
            self._hints = _resolved_hints(self.function, self.where)
        return self._hints

    def hints_are_known(self) -> bool:
        """False where a hint names something that is defined further down; the schema then waits for its first use."""
        try:
            return self.hints is not None
        except ConfigError:
            return False

    def bind(self, environment: Any) -> Tool:
        """The tool of one environment."""
        return Tool(
            spec=self.spec,
            call=partial(self._call, environment),
            timeout_s=self.timeout_s,
            timeout_owner=self.timeout_owner,
        )

    async def _call(self, environment: Any, arguments: Mapping[str, Any]) -> str:
        hints = self.hints
        unknown = [name for name in arguments if name not in hints]
        if unknown:
            raise ToolError(f"{self.name} has no parameter {unknown[0]!r}; it takes {', '.join(hints) or 'none'}")
        converted = {
            name: value if type(value) is hints[name] else convert(hints[name], value)
            for name, value in arguments.items()
        }
        if not self._required <= converted.keys():
            try:
                self.signature.bind(environment, **converted)
            except TypeError as error:
                raise ToolError(f"{self.name}: {error}") from None
        return result_text(await self._run(environment, converted), self.where)

    async def _run(self, environment: Any, arguments: Mapping[str, Any]) -> Any:
        function: Callable[..., Any] = self.function
        if self.is_async:
            return await function(environment, **arguments)
        if self.inline:
            return function(environment, **arguments)
        if self.parallel:
            return await run_in_thread(partial(function, environment, **arguments))
        async with _lock_of(environment):
            return await run_in_thread(partial(function, environment, **arguments))


@overload
def tool(function: Callable[Concatenate[Any, P], R], /) -> ToolMethod[P, R]: ...
@overload
def tool(
    *,
    timeout_s: float = ...,
    on_timeout: Literal["environment", "model"] = ...,
    inline: bool = ...,
    parallel: bool = ...,
) -> Callable[[Callable[Concatenate[Any, P], R]], ToolMethod[P, R]]: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a method, sync or async, a tool of its environment.

    The schema comes from the type hints, the descriptions from the docstring (Google, NumPy or reST style).
    The result becomes text: a str as it is, None as "ok", an ImagePart (or a list of text and such parts) as an image
    before its text, anything else as JSON.  Raise `ToolError` to tell the
    policy what it did wrong.

    Sync methods run on a thread, so that one which blocks stalls no other episode; within one episode they run one
    after another in the order of the calls, so that they may change `self` without locks.

    Options: timeout_s bounds one call (default 30).  on_timeout says who answers for a call that runs past it:
    "environment" (the default: the episode is left out) or "model" (tools that run what the model wrote: it is
    told).  inline=True runs a fast sync method on the event loop, without a thread.  parallel=True lets the calls of
    one turn run on several threads at once; the method then guards what it shares.

    Raises ConfigError for a parameter without a type hint, for *args and **kwargs, and for hints without a JSON form.
    """
    if function is None:
        return partial(_make_tool, **options)
    return _make_tool(function, **options)


def result_text(value: Any, where: str = "tool") -> str:
    """What the policy reads of a result.  Raises TypeError for a value without a JSON form.

    >>> result_text({"left": 3}), result_text(None), result_text("as is")
    ('{"left":3}', 'ok', 'as is')
    """
    if value is None:
        return "ok"
    if type(value) is str:
        return value
    parts = value if isinstance(value, (list, tuple)) else (value,)
    images = tuple(part for part in parts if isinstance(part, ImagePart))
    if images:
        texts = [part for part in parts if not isinstance(part, ImagePart)]
        text = result_text(texts[0] if len(texts) == 1 else texts, where) if texts else ""
        return ShownResult(text, images)
    try:
        plain = to_json(value)
        return plain if isinstance(plain, str) else compact_json(plain)
    except TypeError as error:
        raise TypeError(f"{where} returned {error}; return text, a number, a list, a dict or a dataclass") from None


def tool_methods(environment_class: type) -> dict[str, ToolMethod[Any, Any]]:
    """The tools of a class by name, those of its bases first, in the order they were written."""
    found: dict[str, ToolMethod[Any, Any]] = {}
    for base in reversed(environment_class.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, ToolMethod):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def schema_problems(method: ToolMethod[Any, Any]) -> list[str]:
    """What leaves a policy guessing: a tool or parameter without description, a described one that is not there."""
    problems = [] if method.spec.description else [f"{method.where} has no description; write a docstring"]
    properties = method.spec.parameters["properties"]
    problems += [
        f"{method.where}: parameter {name} has no description"
        for name, schema in properties.items()
        if "description" not in schema
    ]
    documented = _documented(method.function)[1]
    problems += [
        f"{method.where}: the docstring describes {name}, which is no parameter"
        for name in documented
        if name not in properties
    ]
    return problems


def _make_tool(function: Any, **options: Any) -> ToolMethod[Any, Any]:
    if not inspect.isfunction(function):
        raise ConfigError(f"@tool belongs on a plain method (def or async def), got {type(function).__name__}")
    return ToolMethod(function, **options)


def _owner(on_timeout: str, where: str) -> Owner:
    if on_timeout not in (Owner.ENVIRONMENT, Owner.MODEL):
        raise ConfigError(f'{where}: on_timeout is "environment" or "model", got {on_timeout!r}')
    return Owner(on_timeout)


def _checked_signature(function: Callable[..., Any]) -> inspect.Signature:
    where = f"tool {function.__qualname__}"
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD):
        raise ConfigError(f"{where}: a tool is a method; its first parameter is self")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"{where}: parameter {parameter} has no JSON form; name each parameter")
        if parameter.annotation is parameter.empty:
            raise ConfigError(f"{where}: parameter {parameter.name} needs a type hint, such as {parameter.name}: str")
    return signature


def _resolved_hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Hints of the parameters alone: what a tool returns may be a name that exists for type checkers only."""
    names = list(inspect.signature(function).parameters)[1:]
    annotated = SimpleNamespace(__annotations__={name: function.__annotations__[name] for name in names})
    try:
        return get_type_hints(annotated, function.__globals__, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{where}: a type hint cannot be read ({error}); define the type at module level") from None


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Description of a function and of each of its parameters, whitespace folded."""
    try:
        parsed = docstring_parser.parse(inspect.getdoc(function) or "")
    except docstring_parser.ParseError as error:
        raise ConfigError(f"tool {function.__qualname__}: the docstring cannot be read ({error})") from None
    texts = (parsed.short_description, parsed.long_description)
    description = " ".join(" ".join(text.split()) for text in texts if text)
    return description, {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}


def _make_spec(method: ToolMethod[Any, Any]) -> ToolSpec:
    description, documented = _documented(method.function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, hint in method.hints.items():
        try:
            schema = schema_of(hint)
        except ConfigError as error:
            raise ConfigError(f"{method.where}: parameter {name}: {error}") from None
        default = method.signature.parameters[name].default
        if default is inspect.Parameter.empty:
            required.append(name)
        elif default is not None:
            schema["default"] = _default(default, f"{method.where}: parameter {name}")
        properties[name] = schema | ({"description": documented[name]} if documented.get(name) else {})
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSpec(name=method.name, description=description, parameters=parameters)


def _default(value: Any, where: str) -> Any:
    try:
        return to_json(value)
    except TypeError as error:
        raise ConfigError(f"{where}: the default: {error}") from None


def _lock_of(environment: Any) -> Lock:
    """One lock for each environment, made when first needed: authors need not call `super().__init__`."""
    lock: Lock | None = vars(environment).get(_LOCK)
    if lock is None:
        lock = vars(environment)[_LOCK] = Lock()
    return lock
