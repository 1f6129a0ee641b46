"""The command line: one dict of commands, each a module imported only when it is asked for.

Lives here: dispatch, and the translation of UserError/InvalidRun into one sentence and an exit code.
`joulegraph --help` must not import aiohttp, rich, numpy or uvloop (a test holds it to that).
"""

from __future__ import annotations

import errno
import importlib
import sys

from joulegraph import __version__
from joulegraph.flags import Parser
from traces.errors import InvalidRun, UserError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "joulegraph.commands.demo",
        "the whole path in a minute: engine, proxy, sampler, load, report; no GPU",
    ),
    "replay": ("joulegraph.commands.replay", "replay a workflow trace, open loop, against an engine"),
    "proxy": ("joulegraph.commands.proxy", "observe and tag live traffic in front of an engine"),
    "engine": ("joulegraph.commands.engine", "start an engine (embedded, vLLM, llama.cpp), or look at one that runs"),
    "bridge": ("joulegraph.commands.bridge", "put an OpenAI-style engine under Parrot's serve layer"),
    "sweep": (
        "joulegraph.commands.sweep",
        "many runs over factors, repeated in balanced order, with intervals and plots",
    ),
    "top": ("joulegraph.commands.top", "live view of a running replay, proxy or demo"),
    "trace": ("joulegraph.commands.trace", "check, show, import and export trace files"),
    "workload": ("joulegraph.commands.workload", "write a synthetic workflow trace"),
    "sample": ("joulegraph.commands.sample", "record power sensors"),
    "doctor": ("joulegraph.commands.doctor", "what this machine can measure, and what is missing"),
    "attribute": (
        "joulegraph.commands.attribute",
        "put joules on requests, phases, agents and workflows of a run",
    ),
    "calibrate": ("joulegraph.commands.calibrate", "measure an energy profile of an engine and save it"),
    "compare": ("joulegraph.commands.compare", "compare runs with intervals"),
    "validate": ("joulegraph.commands.validate", "score the attribution against synthetic truth"),
    "import-run": ("joulegraph.commands.import_run", "make a run directory from a foreign recording"),
    "report": ("joulegraph.commands.report", "render the report of a run"),
    "finish": ("joulegraph.commands.finish", "complete an interrupted run from its journals"),
}


def usage() -> str:
    """The text of `joulegraph --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: joulegraph COMMAND [options]",
            "",
            "Latency and energy of multi-request LLM workflows: measured, attributed, replayed.",
            "",
            "commands:",
            *lines,
            "",
            "joulegraph COMMAND --help explains one. Start with: joulegraph demo",
            "",
        ]
    )


def _plain(sentence: str) -> str:
    """What a file holds may be quoted in a sentence, and must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in sentence)


def run(argv: list[str]) -> int:
    """Dispatch one command line; the exit code: 0 done, 1 finished but invalid, 2 not possible as asked."""
    if not argv or argv[0] in ("-h", "--help"):
        (sys.stdout if argv else sys.stderr).write(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        sys.stdout.write(f"joulegraph {__version__}\n")
        return 0
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"joulegraph: unknown command {argv[0]!r}; joulegraph --help lists them\n")
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    parser = Parser(prog=f"joulegraph {argv[0]}", description=module.__doc__)
    module.configure(parser)
    args = parser.parse_args(argv[1:])
    try:
        return int(module.run(args))
    except UserError as error:
        sys.stderr.write(f"joulegraph: {_plain(str(error))}\n")
        return 2
    except InvalidRun as error:
        sys.stderr.write(f"joulegraph: the run is invalid: {error}\n")
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        sys.stderr.write(f"joulegraph: {error.filename or 'a file'}: {error.strerror}; make room or write elsewhere\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"joulegraph: {str(error) or 'interrupted'}\n")
        return 130
