"""The workload patterns: each a function of a Flow whose keyword parameters are all there is to set.

Defaults are the published lengths of the Parrot artifact where it has them (presets.py names the sources). Prompt
lengths are built from pieces, so that outputs drawn longer make the prompts that read them longer.
May not know: arrivals, files, presets.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from traces.errors import UserError
from traces.workloads.flow import Call, Flow, Part
from traces.workloads.spread import Amount

Pattern = Callable[..., None]


def sequential(
    flow: Flow,
    *,
    shape: str = "chain",
    document: str = "20000",
    chunk: int = 1024,
    output: str = "50",
    instruction: int = 20,
    refine: int = 90,
    reduce_output: str = "",
) -> None:
    """Summarise a long document: a chain that refines chunk by chunk, or map over the chunks and reduce.

    shape: chain | map-reduce. document, chunk: tokens of the document and of each chunk (the last one is what is left).
    output: tokens of each summary. instruction, refine: tokens of the first and of the later instructions.
    reduce_output: tokens of the reduced summary (empty: as output).
    """
    if chunk < 1:
        raise UserError(f"parameter chunk is {chunk}; a chunk holds at least one token")
    tokens = max(1, flow.draw(document))
    sizes = [min(chunk, tokens - i * chunk) for i in range(ceil(tokens / chunk))]
    first, later = flow.shared("summarise", instruction), flow.shared("refine", refine)
    match shape:
        case "chain":
            said: Call | None = None
            for i, size in enumerate(sizes):
                prompt: list[Part] = [later, said, flow.text(size)] if said else [first, flow.text(size)]
                said = flow.call(f"chunk-{i}", prompt, output, agent="summariser")
        case "map-reduce":
            parts = [
                flow.call(f"map-{i}", [first, flow.text(size)], output, agent="mapper") for i, size in enumerate(sizes)
            ]
            flow.call("reduce", [flow.shared("reduce", instruction), *parts], reduce_output or output, agent="reducer")
        case _:
            raise UserError(f"parameter shape is {shape!r}; choose chain or map-reduce")


def interactive(
    flow: Flow,
    *,
    app: str = "copilot",
    prefix: int = 5107,
    query: str = "q(0:117,0.1:203,0.5:1039,0.9:1720,1:2385)",
    output: str = "183-800",
    turns: Amount = 1,
    follow_up: str = "20-80",
    think_ms: str = "lognormal(10000,1)",
) -> None:
    """A search copilot: a large prompt shared by all users, then what one user asked (and what was found for it).

    app: name of the shared prompt and of the agent. prefix: its tokens. query, output: tokens of the private part
    and of the answer. turns: questions per conversation; follow_up, think_ms: tokens of the later ones and the pause
    before each.
    """
    last = flow.call("turn-0", [flow.shared(app, prefix), flow.text(query)], output, agent=app)
    for turn in range(1, flow.draw(turns)):
        last = flow.call(f"turn-{turn}", [flow.text(follow_up)], output, agent=app, continues=last, think_ms=think_ms)


def agentic(
    flow: Flow,
    *,
    files: Amount = 8,
    rounds: Amount = 4,
    task: str = "182",
    design: str = "706",
    code: str = "196-822",
    review: str = "238-410",
    revision: str = "172-636",
    coder_guide: int = 2275,
    reviewer_guide: int = 363,
    reviser_guide: int = 500,
    file_name: int = 10,
) -> None:
    """Multi-agent coding: an architect, a coder per file, then rounds of reviewers and revisers with barriers.

    files: fan-out. rounds: times (review all, revise all) is done. task, design: the architect's prompt and output.
    code, review, revision: output tokens of each role. *_guide: instructions of each role. file_name: tokens of a
    file's name. Coders read the design; reviewers read every file; a reviser reads every file and its own review, once
    all reviews are in. What a round reads in common comes first and the file's name last, so prompts of a round share
    all but their ends.
    """
    architect = flow.call("architect", [flow.text(task)], design, agent="architect")
    names = [flow.text(file_name) for _ in range(max(1, flow.draw(files)))]
    coding, reviewing, revising = (
        flow.shared("coder", coder_guide),
        flow.shared("reviewer", reviewer_guide),
        flow.shared("reviser", reviser_guide),
    )
    current = [flow.call(f"coder-{i}", [coding, architect, name], code, agent="coder") for i, name in enumerate(names)]
    for turn in range(flow.draw(rounds)):
        reviews = [
            flow.call(f"review-{turn}-{i}", [reviewing, *current, name], review, agent="reviewer")
            for i, name in enumerate(names)
        ]
        current = [
            flow.call(
                f"revise-{turn}-{i}", [revising, *current, reviews[i], name], revision, agent="reviser", after=reviews
            )
            for i, name in enumerate(names)
        ]


def tool_loop(
    flow: Flow,
    *,
    system: int = 1500,
    request: str = "40-200",
    steps: Amount = "3-10",
    call: str = "30-120",
    result: str = "lognormal(400,1)",
    tool_ms: str = "lognormal(2000,2)",
    answer: str = "100-400",
) -> None:
    """One agent with tools: think, call a tool, read what it gave, again; then answer. The prompt only ever grows.

    system: tokens of the shared system prompt and tool descriptions. request: the user's wish. steps: tool calls.
    call, result: tokens of each tool call and of what the tool returned. tool_ms: how long a tool takes.
    answer: tokens of the final answer.
    """
    steps_wanted = max(0, flow.draw(steps))
    prompt = [flow.shared("tools", system), flow.text(request)]
    last: Call | None = None
    for step in range(steps_wanted + 1):
        length = call if step < steps_wanted else answer
        if last is None:
            last = flow.call("step-0", prompt, length, agent="agent")
        else:
            last = flow.call(
                f"step-{step}", [flow.text(result)], length, agent="agent", continues=last, tool_ms=tool_ms
            )


def debate(
    flow: Flow,
    *,
    debaters: Amount = 3,
    rounds: Amount = 3,
    rules: int = 300,
    question: str = "50-150",
    statement: str = "100-250",
    verdict: str = "150-300",
) -> None:
    """Debaters answer in rounds, each reading everyone's statements of the round before; a judge reads the last round.

    debaters, rounds: fan-out and depth. rules: tokens of the shared instructions. question: the topic.
    statement, verdict: output tokens of a debater and of the judge.
    """
    opening = [flow.shared("rules", rules), flow.text(question)]
    said: list[Call] = []
    voices = range(max(1, flow.draw(debaters)))
    for turn in range(max(1, flow.draw(rounds))):
        said = [
            flow.call(f"round-{turn}-{v}", [*opening, *said, flow.text(8)], statement, agent=f"debater-{v}")
            for v in voices
        ]
    flow.call("judge", [*opening, *said, flow.shared("judge", 60)], verdict, agent="judge")


def plan_execute(
    flow: Flow,
    *,
    steps: Amount = "3-6",
    waves: Amount = 1,
    system: int = 400,
    goal: str = "50-200",
    plan: str = "100-250",
    result: str = "80-300",
    tool_ms: str = "0",
    answer: str = "150-400",
) -> None:
    """A planner spawns workers, reads their results and plans again; in the end a writer answers from all results.

    steps: workers per wave, which run at the same time. waves: times it is planned. system: shared instructions.
    goal, plan, result, answer: tokens of the wish and of each role's output. tool_ms: a worker's tool time.
    """
    common, wish = flow.shared("planner", system), flow.text(goal)
    results: list[Call] = []
    for wave in range(max(1, flow.draw(waves))):
        planner = flow.call(f"plan-{wave}", [common, wish, *results], plan, agent="planner")
        for step in range(max(1, flow.draw(steps))):
            worker = f"worker-{wave}-{step}"
            done = flow.call(
                worker,
                [flow.shared("worker", system), planner, flow.text(20)],
                result,
                agent=worker,
                parent_agent="planner",
                spawned_by=planner,
                tool_ms=tool_ms,
            )
            results.append(done)
    flow.call("answer", [flow.shared("writer", system), wish, *results], answer, agent="writer")


def chat(
    flow: Flow,
    *,
    system: int = 0,
    prompt: str = "16-1024",
    output: str = "16-1024",
    turns: Amount = 1,
    think_ms: str = "lognormal(10000,1)",
) -> None:
    """Plain chat: independent questions, or conversations of several turns.

    system: tokens of a shared system prompt. prompt, output: tokens of each message and reply. turns: messages per
    chat; think_ms: pause before each but the first.
    """
    opening = [flow.shared("chat", system)] if system else []
    last = flow.call("turn-0", [*opening, flow.text(prompt)], output, agent="chat")
    for turn in range(1, flow.draw(turns)):
        last = flow.call(f"turn-{turn}", [flow.text(prompt)], output, agent="chat", continues=last, think_ms=think_ms)


PATTERNS: dict[str, Pattern] = {
    "sequential": sequential,
    "interactive": interactive,
    "agentic": agentic,
    "tool-loop": tool_loop,
    "debate": debate,
    "plan-execute": plan_execute,
    "chat": chat,
}
"""Every pattern by its name on the command line; "composite" (compose.py) mixes them."""
