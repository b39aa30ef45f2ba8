"""The command line: find the command, let tyro fill its dataclass, call its function, print the result.

A new command is a dataclass in config and a row in COMMANDS. The function is imported when it is called, so that
`--help` needs neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from barlowtwins import config
from barlowtwins.core.errors import BarlowTwinsError, StoppedEarly, UsageError
from barlowtwins.version import __version__

__all__ = ["COMMANDS", "GROUPS", "Command", "main"]

PROG = "barlowtwins"
INTERRUPTED = 130
KINDS = {"float": "a number", "int": "a whole number"}  # a type, as tyro's words have it, in plain ones


@dataclass(frozen=True)
class Command:
    """One row of the table."""

    settings: type
    """A dataclass of config: its fields are the flags, its docstring the help."""
    function: str
    """"module:name" of what takes the settings and returns the result."""


COMMANDS = {
    "pretrain": Command(config.PretrainConfig, "barlowtwins.pretraining:pretrain"),
    "embed": Command(config.EmbedConfig, "barlowtwins.embedding.embed:embed"),
    "evaluate knn": Command(config.KNNConfig, "barlowtwins.evaluate:evaluate_knn"),
    "evaluate linear": Command(config.LinearConfig, "barlowtwins.evaluate:evaluate_linear"),
    "evaluate semi": Command(config.SemiConfig, "barlowtwins.evaluate:evaluate_semi"),
    "evaluate finetune": Command(config.FinetuneConfig, "barlowtwins.evaluate:evaluate_finetune"),
    "evaluate svm": Command(config.SVMConfig, "barlowtwins.evaluate:evaluate_svm"),
    "classify": Command(config.ClassifyConfig, "barlowtwins.evaluate.classify:classify"),
    "neighbors": Command(config.NeighborsConfig, "barlowtwins.reports.neighbors:neighbors"),
    "weights list": Command(config.WeightsListConfig, "barlowtwins.zoo.commands:weights_list"),
    "weights show": Command(config.WeightsShowConfig, "barlowtwins.zoo.commands:weights_show"),
    "weights get": Command(config.WeightsGetConfig, "barlowtwins.zoo.commands:weights_get"),
    "weights verify": Command(config.WeightsVerifyConfig, "barlowtwins.zoo.commands:weights_verify"),
    "report": Command(config.ReportConfig, "barlowtwins.reports.report:report"),
    "weights convert": Command(config.WeightsConvertConfig, "barlowtwins.zoo.conversion:weights_convert"),
    "export": Command(config.ExportConfig, "barlowtwins.zoo.export:export"),
    "map": Command(config.MapConfig, "barlowtwins.reports.map:map"),
    "augment": Command(config.AugmentConfig, "barlowtwins.reports.sheets:augment"),
    "check": Command(config.CheckConfig, "barlowtwins.data.check:check"),
    "demo": Command(config.DemoConfig, "barlowtwins.shapes_demo:demo"),
}

ALIASES = {"neighbours": "neighbors"}

GROUPS = {
    "evaluate": "Find out how good features are.",
    "weights": "Published weights: list them, fetch them, check a file.",
}


@dataclass(frozen=True)
class Common:
    """Flags that every command takes."""

    json: bool = False
    """Print the result as one JSON object, the last line of standard output."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after `barlowtwins`; those of the process unless told.

    Returns:
        0 done; 1 failed, with one line on standard error; 2 bad usage; 75 stopped early and resumable; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name of odd bytes is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(list(arguments))
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED, "--debug" in arguments)
    except StoppedEarly as stop:
        return _complain(f"stopped: {stop}", stop.exit_code)
    except BarlowTwinsError as error:
        said = _with_flags(error) if isinstance(error, UsageError) else str(error)
        return _complain(f"error: {said}", error.exit_code, "--debug" in arguments)
    except Exception as error:  # noqa: BLE001  whatever it is, the user gets one line, and the traceback for asking
        return _complain(f"error: {_unforeseen(error, arguments)}", 1, "--debug" in arguments)


def _run(arguments: list[str]) -> int:
    leading = []
    while arguments and arguments[0].startswith("-"):
        leading.append(arguments.pop(0))
    if {"-h", "--help"} & set(leading):
        _print(_overview())
        return 0
    if "--version" in leading:
        _print(f"{PROG} {__version__}")
        return 0
    _check_flags(leading, {"help", "version", *_flags(Common)}, PROG)
    if not arguments:
        raise UsageError(f"a command is missing: {', '.join(_first_words())}; see {PROG} --help")
    name = _command(arguments)
    if name is None:  # the help of a group was asked for and shown
        return 0
    command = COMMANDS[name]
    parsed = _parse(f"{PROG} {name}", command.settings, leading + arguments)
    if parsed is None:
        return 0
    settings, common = parsed
    module, _, function = command.function.partition(":")
    result = getattr(importlib.import_module(module), function)(settings)

    from barlowtwins.core import printing

    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        _print(
            json.dumps(printing.plain(result), allow_nan=False)
            if common.json
            else printing.escape_controls(printing.render(result))
        )
    return int(getattr(result, "exit_code", 0))


def _command(arguments: list[str]) -> str | None:
    """Take the command's one or two words off `arguments`."""
    name = arguments.pop(0)
    name = ALIASES.get(name, name)
    if name in GROUPS:
        if arguments[:1] in (["-h"], ["--help"]):
            _print(_overview(name))
            return None
        if not arguments or arguments[0].startswith("-"):
            words = ", ".join(command.split()[1] for command in COMMANDS if command.startswith(f"{name} "))
            raise UsageError(f"{name} needs one of: {words}; see {PROG} {name} --help")
        name = f"{name} {arguments.pop(0)}"
    if name not in COMMANDS:
        last_words = {command.split()[-1]: command for command in COMMANDS}
        near = difflib.get_close_matches(name, [*COMMANDS, *GROUPS, *last_words], n=1, cutoff=0.5)
        hint = (
            f"did you mean {last_words.get(near[0], near[0])!r}?" if near else f"there is {', '.join(_first_words())}"
        )
        raise UsageError(f"there is no command {name!r}; {hint}")
    return name


def _parse(prog: str, settings: type, arguments: list[str]) -> tuple[Any, Common] | None:
    """Let tyro fill the dataclass; None where the help was asked for and shown."""
    import tyro

    _check_flags(arguments, {"help", *_flags(settings), *_flags(Common)}, prog)
    unprefixed = tyro.conf.arg(name="")
    fields = [("settings", Annotated[settings, unprefixed]), ("common", Annotated[Common, unprefixed])]
    call = dataclasses.make_dataclass("call", fields, namespace={"__doc__": settings.__doc__})
    style = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.DisallowNone,
        tyro.conf.PositionalMetavarFromFieldName,
    )
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            parsed: Any = tyro.cli(call, prog=prog, args=arguments, config=style)
    except SystemExit as end:
        if end.code:
            raise UsageError(f"{_in_plain_words(_condense(err.getvalue()))}; see {prog} --help") from None
        page = re.sub(r"\s*\(default:\s+None\)", "", out.getvalue())  # the help text says what decides instead
        _print("\n".join(line.rstrip() for line in page.rstrip().splitlines()))
        return None
    return parsed.settings, parsed.common


def _flags(settings: type) -> set[str]:
    return {field.name.replace("_", "-") for field in dataclasses.fields(settings)}


def _with_flags(error: UsageError) -> str:
    """The message, with the names of settings as the command line spells them: batch_size is --batch-size."""
    said = str(error)
    for name in error.settings:
        said = re.sub(rf"(?<![\w-]){name}\b", "--" + name.replace("_", "-"), said, count=1)
    return said


def _check_flags(arguments: Sequence[str], known: set[str], prog: str) -> None:
    for word in arguments:
        if word == "--":
            return
        flag = word[2:].partition("=")[0].replace("_", "-")
        if not word.startswith("--") or flag in known or flag.startswith("tyro-"):
            continue
        near = difflib.get_close_matches(flag, sorted(known), n=1)
        hint = f"did you mean --{near[0]}?" if near else f"see {prog} --help"
        raise UsageError(f"{prog} has no flag --{flag}; {hint}")


def _condense(message: str) -> str:
    """What tyro says below a title, as one line: the part above its next rule, without the help texts."""
    kept: list[str] = []
    for line in message.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─- ") and line.replace("│", " ").rstrip()
        if not text:
            if kept:
                break
        elif len(text) - len(text.lstrip()) < 8:  # deeper are the help texts of arguments
            kept.append(text.strip())
    return (
        " ".join(kept).replace("'None', ", "").replace(", 'None')", ")").rstrip(".")
        or "the arguments cannot be understood"
    )


def _in_plain_words(said: str) -> str:
    """What tyro says of a value that is wrong or missing, as a person would; anything else as it is."""
    if found := re.fullmatch(r"Error parsing (\S+): (.*?)\[?(['\"])(.*)\3\]?", said):
        flag, why, _, value = found.groups()
        kind = next((words for name, words in KINDS.items() if re.search(rf"\b{name}\b", why, re.I)), None)
        return f"{flag} must be {kind}, got {value!r}" if kind else f"{flag} cannot be {value!r}"
    if found := re.fullmatch(rf"Missing from {PROG} ([^:]+): (.*)", said):
        return f"{found[1]} needs {found[2].replace(' STR', ' ...')}"
    if found := re.fullmatch(r"Missing value for argument '(\S+)'\. Expected \d+ values?", said):
        return f"{found[1]} needs a value"
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*?),?\)", said):
        choices = sorted(word.strip("' ") for word in found[3].split(","))
        return f"{found[2]} must be one of {', '.join(choices)}, got {found[1]!r}"
    return said


def _first_words() -> list[str]:
    return list(dict.fromkeys(command.split()[0] for command in COMMANDS))


def _overview(group: str | None = None) -> str:
    """The help page of the program, or of a group of commands."""
    from barlowtwins.core.printing import table

    rows = [
        [f"  {name}", str(command.settings.__doc__).partition("\n")[0]]
        for name, command in COMMANDS.items()
        if group is None or name.startswith(f"{group} ")
    ]
    return "\n".join(
        [
            f"usage: {PROG} {group + ' ' if group else ''}COMMAND ... [--json] [--debug]",
            "",
            GROUPS[group] if group else "Barlow Twins: pretrain without labels, embed images, find out how good it is.",
            "",
            table(rows),
            "",
            "Every command takes --help; --json prints the result as one JSON object, --debug an error's traceback.",
        ]
    )


def _unforeseen(error: Exception, arguments: Sequence[str]) -> str:
    """One line for an error that nobody raised on purpose."""
    said = str(error).strip().partition("\n")[0]
    torch = sys.modules.get("torch")
    on_the_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if on_the_gpu or isinstance(error, MemoryError) or "can't allocate memory" in said:
        advice = "make --batch-size smaller"
        if "pretrain" in arguments:
            advice += ", or keep it and set --micro-batch-size to a part of it: the same loss in less memory"
        return f"out of memory ({said or type(error).__name__}); {advice}"
    if isinstance(error, OSError):
        return f"{error}"
    return f"unforeseen {type(error).__name__}: {said or 'without a message'}; --debug shows where"


def _complain(text: str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    from barlowtwins.core.printing import escape_controls

    with contextlib.suppress(OSError, ValueError):  # nobody may be listening any more
        print(f"{PROG}: {escape_controls(' '.join(text.split()))}", file=sys.stderr, flush=True)
    return code


def _print(text: str) -> None:
    """Print to standard output; a reader that has gone (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end


if __name__ == "__main__":
    sys.exit(main())
