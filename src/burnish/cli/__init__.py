"""The command line: parses arguments, prints, and is the only place that does.  Everything heavy is imported late."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

COMMANDS: dict[str, str] = {
    "demo": "train a tiny tool-using agent from zero, and open its report",
    "train": "train by a recipe, an environment file or a taskset",
    "resume": "go on with an interrupted run, exactly",
    "fork": "start a new run from the state of another, with changed keys",
    "eval": "evaluate a run, a model folder or an endpoint on held-out tasks",
    "compare": "compare two evaluations, paired over tasks and seeds",
    "view": "follow a run in the browser",
    "report": "write a run's report as one HTML file",
    "why": "say why a run is ill: ranked causes with their evidence",
    "health": "watch stored token streams of any trainer",
    "diagnose": "say which step of a trajectory failed, and whose fault it was",
    "runs": "list runs, or prune them to a disk budget",
    "regrade": "grade stored trajectories again and show what changes",
    "override": "say what a grade, flag or label should have been",
    "overrides": "list overrides, and how often graders and flags were wrong",
    "judge": "measure a judge: against labels, or how far raters agree",
    "curate": "make traces for SFT that cite what they see, and keep the correct and grounded",
    "replay": "recompute a stored step and compare its loss",
    "export": "write a run's policy as a Hugging Face folder, or the run to a tracker",
    "doctor": "examine an environment before training in it",
    "init": "write an example project",
    "keys": "list every recipe key with its default and reason",
}

DIAGNOSE_FORMATS = ("atif", "agentrx", "tau", "inspect", "chat", "otel")

EXIT_USAGE = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest what was meant."""

    def error(self, message: str) -> NoReturn:
        print(f"burnish: {message}{_hint(self, message)}", file=sys.stderr)
        print(f"Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _hint(parser: argparse.ArgumentParser, message: str) -> str:
    words = [word.strip("'\",:") for word in message.split()]
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in words:
        close = difflib.get_close_matches(word.split("=")[0], options, n=1) if word.startswith("--") else []
        if close and word.split("=")[0] not in options:
            return f"; did you mean {close[0]}?"
    return ""


def _parser() -> Parser:
    parser = Parser(
        prog="burnish",
        description="RL post-training for tool-using agents, with a learning signal you can trust.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="First steps: burnish demo; burnish init my-agent; burnish train my_env.py\n"
        "Every recipe key: burnish keys",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show tracebacks of expected errors too")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(parser=command)
        _ARGUMENTS[name](command)
    return parser


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="key=value", help="recipe keys, such as rl.lr=1e-4")


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default="runs", help="folder that holds the runs (default: runs)")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, name, start of its name, or: latest")
    _root(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    _overrides(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="built-in recipe, .toml, environment .py or taskset .jsonl")
    _overrides(parser)


def _fork(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--step", default="", metavar="CHECKPOINT", help="such as rl-000020 (default: the newest)")
    parser.add_argument(
        "--keep-baselines", action="store_true", help="health and control go on where the parent's were"
    )
    _overrides(parser)
    parser.epilog = "Every key may change but those of model and warm_start: the weights are made of them."


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "policy", metavar="RUN|MODEL", help="a run, a model folder or id, or openai:MODEL (an endpoint)"
    )
    parser.add_argument(
        "--taskset", default="", metavar="ENV[:SPLIT]", help="such as shop:heldout (default: the run's)"
    )
    parser.add_argument("--tasks", type=int, default=300, help="at most so many tasks (default: 300)")
    parser.add_argument("--samples", type=int, default=1, help="episodes for each task (default: 1)")
    parser.add_argument("--mode", choices=("greedy", "sampled"), default="greedy", help="default: greedy")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--label", default="", help="name of the stored result (default: made from policy and taskset)")
    parser.add_argument("--base-url", default="", help="of an OpenAI-compatible endpoint (default: $OPENAI_BASE_URL)")
    _root(parser)
    _overrides(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a run or a file written by `burnish eval`")
    parser.add_argument("b", metavar="B", help="the other one; differences are B - A")
    parser.add_argument("--label", default="after_rl", help="which evaluation of a run (default: after_rl)")
    parser.add_argument("--mode", choices=("greedy", "sampled"), default="greedy", help="default: greedy")
    parser.add_argument("--split", default="heldout", help="default: heldout")
    _root(parser)


def _view(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1 (default: 8765; 0: any free one)")
    parser.add_argument("--prometheus", action="store_true", help="also answer /metrics for a Prometheus scraper")
    parser.add_argument("--overrides", action="store_true", help="also take overrides, by POST with a token")


def _why(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="FILE|RUN", help="a .jsonl or .parquet file or a folder of them, or a run that kept its streams"
    )
    parser.add_argument(
        "--baseline-steps", type=int, default=None, help="first steps, held to be healthy (default: 50)"
    )
    parser.add_argument(
        "--false-alarms-per-1000", type=float, default=None, metavar="RATE", help="over all monitors (default: 0.5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _root(parser)
    parser.epilog = "The columns are described in docs/health.md; names of TRL and verl are known."


def _diagnose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE|RUN", help="trajectories of any agent, .jsonl or .json, or a run")
    parser.add_argument(
        "--policy",
        default="",
        metavar="FILE",
        help="rules: .toml, or retail, shop, shop_dialogue, repair, none (default: of a run's world, else none)",
    )
    parser.add_argument("--phase", choices=("rl", "eval"), default="rl", help="of a run (default: rl)")
    parser.add_argument("--format", default="", choices=("", *DIAGNOSE_FORMATS), help="(default: seen from the record)")
    parser.add_argument("--no-reference", action="store_true", help="do not look at gold actions")
    parser.add_argument("--all", action="store_true", help="also trajectories that passed")
    parser.add_argument("--failed", action="store_true", help="records that do not say how they ended have failed")
    parser.add_argument("--weights", default="", metavar="FILE", help="of the ranking, or built-in: labelled, injected")
    parser.add_argument("--constraints", default="", metavar="FILE", help="constraints that a model wrote, JSON")
    parser.add_argument("--judge", default="", metavar="openai:MODEL", help="let a model read them too")
    parser.add_argument("--base-url", default="", help="of the judge's endpoint (default: $OPENAI_BASE_URL)")
    parser.add_argument("--votes", type=int, default=1, help="ask the judge so often, and take the mean (default: 1)")
    parser.add_argument("--cache", default="", metavar="FILE", help="keep the judge's replies, and never ask twice")
    parser.add_argument("--offline", action="store_true", help="use the replies in --cache alone")
    parser.add_argument("--max-requests", type=int, default=None, help="to the judge (default: no limit)")
    parser.add_argument("--out", default="", metavar="FILE", help="write every diagnosis, as JSONL")
    parser.add_argument("--to-atif", default="", metavar="FILE", help="write every record, as ATIF JSONL")
    parser.add_argument("--report", default="", metavar="FILE", help="write a report, .html or .md")
    parser.add_argument("--compare", default="", metavar="FILE|RUN", help="with what came before; 4 where it got worse")
    parser.add_argument("--corrections", default="", metavar="FILE", help="what people say, JSONL; a run keeps them")
    parser.add_argument("--export", default="", metavar="FOLDER", help="write preference pairs and corrected prefixes")
    parser.add_argument("--tag", action="store_true", help="write diagnosis.jsonl, tags by trajectory, beside a run")
    parser.add_argument("--where", action="append", default=[], metavar="TAG=VALUE", help="only these, as owner=user")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    _root(parser)
    parser.epilog = "Formats, rules and categories are described in docs/diagnosis.md."


def _report(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--out", default="", help="file to write (default: report.html in the run's folder)")


def _runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "prune"), nargs="?", default="list")
    parser.add_argument("--max-gb", type=float, default=None, help="prune: disk budget of all runs in 10^9 bytes")
    parser.add_argument(
        "--keep-last", type=int, default=5, help="prune: newest runs that are never touched (default: 5)"
    )
    parser.add_argument("--yes", action="store_true", help="prune: really delete (default: say what would be)")
    _root(parser)


def _regrade(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--graders", default="", metavar="FILE", help="graders.toml (default: the run's own graders)")
    parser.add_argument("--phase", choices=("sft", "rl", "eval"), default="", help="only this phase (default: all)")
    parser.add_argument("--out", default="", metavar="FILE", help="also write every new grade, as JSONL")
    parser.add_argument("--offline", action="store_true", help="judges answer from their caches alone")
    parser.add_argument(
        "--beside", default="", metavar="FOLDER", help="where those caches lie (default: where the run's graph lay)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "Nothing is sampled and the run stays as it is.  The file is described in docs/graders.md."


def _override(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("trajectory", metavar="TRAJECTORY", help="its id, such as rl/000012/0003/05")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--grade", default="", metavar="NAME", help="the grader that was wrong, or right")
    kind.add_argument("--flag", default="", metavar="FAMILY", help="a flag; --score 1: honest, 0: it was a cheat")
    kind.add_argument("--label", default="", metavar="NAME=VALUE", help="any other label")
    parser.add_argument("--score", type=float, default=None, help="what it should have been, from 0 to 1")
    parser.add_argument("--by", required=True, metavar="NAME", help="who says so")
    parser.add_argument("--reason", required=True, help="why")
    parser.epilog = "Overrides are only ever added; the last one on a name counts."


def _list_overrides(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument(
        "--out", default="", metavar="FILE", help="write labelled examples for `burnish judge calibrate`"
    )
    parser.add_argument(
        "--corrections", default="", metavar="FILE", help="write corrected diagnoses for `burnish diagnose`, as JSONL"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("calibrate", "agreement", "drift"))
    parser.add_argument(
        "file", metavar="FILE", help="calibrate, drift: (labelled) examples; agreement: ratings; as JSONL"
    )
    parser.add_argument("--rubric", default="", metavar="FILE", help="calibrate, drift: rubric, .toml or .jsonl")
    parser.add_argument(
        "--judge", action="append", default=[], metavar="openai:MODEL", help="calibrate, drift; may be repeated"
    )
    parser.add_argument("--baseline", default="", metavar="FILE", help="drift: made where it is not there")
    parser.add_argument("--base-url", default="", help="of the judges' endpoint (default: $OPENAI_BASE_URL)")
    parser.add_argument("--cache", default="", metavar="FILE", help="keep replies here, and never ask twice")
    parser.add_argument("--offline", action="store_true", help="use the replies in --cache alone")
    parser.add_argument(
        "--orders", type=int, default=2, help="orders of the criteria, to see position bias (default: 2)"
    )
    parser.add_argument("--map", choices=("isotonic", "threshold"), default="isotonic", help="of graded values")
    parser.add_argument("--max-requests", type=int, default=None, help="never send more (default: no limit)")
    parser.add_argument("--out", default="", metavar="FILE", help="calibrate: write the maps of graded values")
    parser.add_argument("--scale", choices=("nominal", "ordinal", "interval"), default="nominal", help="agreement")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "Both files are described in docs/rubrics.md."


def _curate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("find", "overlay", "trace", "filter", "sheet"))
    parser.add_argument(
        "source", metavar="FILE", help="JSONL of the stage before; find: chats with images, or ENV[:SPLIT]"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSONL to write, images beside it; sheet: HTML")
    parser.add_argument(
        "--teacher",
        default="",
        metavar="TEACHER",
        help="find, filter: truth (default of find), references (of filter: those of the file), shapes, "
        "transformers:MODEL, or FILE.py:NAME",
    )
    parser.add_argument(
        "--writer", default="references", metavar="WRITER", help="trace: references, RUN, or openai:MODEL"
    )
    parser.add_argument(
        "--answers", choices=("data", "teacher", "both"), default="data", help="filter: whose are right"
    )
    parser.add_argument(
        "--closing", action="store_true", help="filter: words after the last citation have to hold the answer"
    )
    parser.add_argument("--dropped", default="", metavar="FILE", help="filter: also write what is dropped")
    parser.add_argument("--report", default="", metavar="FILE", help="filter: also write a sheet of both, HTML")
    parser.add_argument("--tasks", type=int, default=1000, help="find: at most so many (default: 1000)")
    parser.add_argument("--samples", type=int, default=1, help="trace: by a model, for each example (default: 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="trace: of the model (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--base-url", default="", help="trace: of the endpoint (default: $OPENAI_BASE_URL)")
    _root(parser)
    parser.add_argument("options", nargs="*", metavar="option=value", help="find: options of the environment")
    parser.epilog = "The stages and their files are described in docs/curation.md."


def _replay(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--step", type=int, required=True, help="RL step to recompute")


def _export(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", default="", help="folder to write the policy to")
    target.add_argument("--to", choices=("wandb", "trackio", "mlflow"), help="tracker to write scalars and findings to")
    parser.add_argument("--project", default="burnish", help="of the tracker (default: burnish)")
    parser.add_argument("--step", default="", metavar="CHECKPOINT", help="such as rl-000020 (default: the newest)")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", metavar="ENV", help="built-in environment, .py or .jsonl file")
    parser.add_argument("--tasks", type=int, default=300, help="tasks to probe (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--policy", default="", metavar="RUN", help="run or model folder: does it look at the environment's images?"
    )
    _root(parser)
    parser.add_argument(
        "options", nargs="*", metavar="option=value", help="options of the environment, such as level=2"
    )


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a new or empty folder")


def _keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", default="", help="only this section, such as rl")


_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": _demo,
    "train": _train,
    "resume": _run,
    "fork": _fork,
    "eval": _eval,
    "compare": _compare,
    "view": _view,
    "report": _report,
    "why": _why,
    "health": _health,
    "diagnose": _diagnose,
    "runs": _runs,
    "regrade": _regrade,
    "override": _override,
    "overrides": _list_overrides,
    "judge": _judge,
    "curate": _curate,
    "replay": _replay,
    "export": _export,
    "doctor": _doctor,
    "init": _init,
    "keys": _keys,
}


def _check_command(argv: Sequence[str]) -> None:
    """An unknown command gets a suggestion, which argparse does not give."""
    word = next((word for word in argv if not word.startswith("-")), "")
    if word and word not in COMMANDS:
        close = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"burnish: unknown command {word!r}{hint}\nCommands: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.  Returns the exit code: 0 done, 1 failed, 2 usage, 3 stopped early, 4 got worse (a comparison),
    130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    _check_command(words)
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest:
        _take_rest(getattr(arguments, "parser", parser), arguments, rest)
    if arguments.version:
        import burnish

        print(f"burnish {burnish.__version__}")
        return 0
    if not arguments.command:
        parser.print_help()
        return EXIT_USAGE
    commands = importlib.import_module("burnish.cli.commands")
    return int(commands.run(arguments))


def _take_rest(parser: Parser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """key=value words may stand after options too; anything else is unknown."""
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    target = next((name for name in ("keys", "options") if hasattr(arguments, name)), "")
    if unknown or not target:
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    setattr(arguments, target, [*getattr(arguments, target), *rest])
