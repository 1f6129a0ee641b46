"""Published figures as named presets, each with its source and with what is ours because it was not published.

Tables only. Parrot: the artifact branch of github.com/microsoft/ParrotServe (OSDI 2024). Paper: arXiv 2604.09611.
"""

from __future__ import annotations

from dataclasses import dataclass

from traces.workloads.generate import Stream


@dataclass(frozen=True, slots=True)
class Preset:
    """A named set of streams for one workload. ours: what the source leaves open and we chose; "" when nothing."""

    streams: tuple[Stream, ...]
    source: str
    ours: str = ""


# The ten sampled papers of Parrot's arxiv-march-2023 have these word counts; 79.0k characters, about 20k tokens, on
# average give 1.64 tokens a word.
_WORDS = (14419, 8879, 9933, 9545, 11575, 11323, 19242, 16928, 9573, 10304)
ARTICLES = "|".join(str(round(1.64 * w)) for w in _WORDS)
_CHAIN = {"document": ARTICLES, "chunk": 1024, "output": "50"}
_PARROT = "ParrotServe artifact branch"
_PAPER = "arXiv 2604.09611"
_USERS16 = "16 users and the 4,096-token context of Llama-2-7B are the paper's (as its readers report); "

SEQUENTIAL = {
    "parrot-fig11": Preset(
        (Stream("sequential", 10, params=_CHAIN),),
        f"{_PARROT}, figure 11: ten arXiv papers, chunk 1024, output 50, EOS ignored (grid: output 25, 50, 75, 100 "
        "at chunk 1024; chunk 512, 1024, 1536, 2048 at output 50)",
        "tokens per paper from its word count; all papers at once (there: one after another)",
    ),
    "parrot-fig12a": Preset(
        (
            Stream("sequential", 1, params=_CHAIN, start_s=3.0),
            Stream("chat", 180, "background", {"prompt": "512", "output": "50"}, rate=3.0),
        ),
        f"{_PARROT}, figure 12a: one chain (1024/50) under a background of 512-token prompts with 50 output "
        "tokens, Poisson at 0, 1, 2, 3 or 3.5 requests/s (here 3)",
        "60 s of background (there: until the chain ends)",
    ),
    "parrot-fig12b": Preset(
        (Stream("sequential", 25, params={**_CHAIN, "document": "12800-22000", "chunk": 2048}),),
        f"{_PARROT}, figure 12b: 10, 15, 20 or 25 chains at once (--count), chunk 2048, output 50",
        "tokens per paper uniform over the published range of 50.7k to 86.7k characters",
    ),
    "parrot-fig13": Preset(
        (Stream("sequential", 10, "map-reduce", {**_CHAIN, "shape": "map-reduce"}),),
        f"{_PARROT}, figure 13: map-reduce over the same papers, chunk 1024, output 50",
        "tokens per paper from its word count; all papers at once (there: one after another)",
    ),
    "paper": Preset(
        (Stream("sequential", 16, params=_CHAIN, users=16),),
        f"{_PAPER}: document summarisation by 16 users",
        _USERS16 + "lengths are those of Parrot's figure 11, which the paper most plausibly inherits",
    ),
}

_BING = {"prefix": 5107, "query": "q(0:117,0.1:203,0.5:1039,0.9:1720,1:2385)", "output": "183-800"}
_GPTS = (  # application, system prompt, query, output (tokens)
    ("productivity", 7437, "7", "704"),
    ("image-generation", 1116, "8", "89"),
    ("programming", 1694, "4", "631"),
    ("data-analysis", 2031, "4", "416"),
)
INTERACTIVE = {
    "parrot-fig14": Preset(
        (Stream("interactive", 64, params=_BING),),
        f"{_PARROT}, figure 14: 64 requests of a Bing-like copilot, shared prompt 5,107 tokens; 288 recorded "
        "prompt lengths with min 5,224, p10 5,310, median 6,146, p90 6,827, max 7,492; outputs 183-800; "
        "batch 8, 16, 32, 64",
        "lengths between the published percentiles interpolated; outputs uniform in the published range",
    ),
    "parrot-fig15": Preset(
        (Stream("interactive", 64, params={**_BING, "output": "400"}),),
        f"{_PARROT}, figure 15: as figure 14 with outputs of 200, 400, 600 or 800 at batch 32 and 100..480 at 64",
        "lengths between the published percentiles interpolated",
    ),
    "parrot-fig16": Preset(
        tuple(
            Stream("interactive", 75, app, {"app": app, "prefix": prefix, "query": query, "output": output}, rate=0.25)
            for app, prefix, query, output in _GPTS
        ),
        f"{_PARROT}, figure 16: four GPTs applications in equal parts, Poisson, 300 requests at 1/s "
        "(rates 1 to 32 there)",
    ),
    "paper": Preset(
        (Stream("interactive", 64, params=_BING, users=16, scale=0.49, rate=1.0),),
        f"{_PAPER}: search-based copilot, 16 users",
        _USERS16 + "Parrot's lengths do not fit that context and are scaled by 0.49; rate 1/s is ours",
    ),
}

AGENTIC = {
    "parrot-fig17": Preset(
        (Stream("agentic", 1),),
        f"{_PARROT}, figure 17: MetaGPT-like coding of 8 files (grid: files 4, 8, 12, 16), ten rounds with "
        "barriers; architect 182 -> 706, coders 2,991 -> 196-822, reviewers 3,717 -> 238-410, "
        "revisers 4,175 -> 172-636 tokens",
        "how prompts are made of instructions and earlier outputs, so that the published lengths come out at 8 files",
    ),
    "paper": Preset(
        (Stream("agentic", 16, params={"files": 4}, users=16, scale=0.84),),
        f"{_PAPER}: multi-agent programming, 16 users",
        _USERS16 + "Parrot's reviewers and revisers do not fit that context: four files and lengths scaled by 0.84",
    ),
}

COMPOSITE = {
    "parrot-fig18": Preset(
        (
            Stream("chat", 40, params={"prompt": "16-1024", "output": "16-1024"}, rate=1.0, cv=0.0),
            Stream(
                "sequential",
                9,
                "map-reduce",
                {"shape": "map-reduce", "document": str(round(1.64 * _WORDS[0])), "chunk": 1024, "output": "50"},
                start_s=15.0,
                gaps_s=(0.5, 0.5, 10.0),
            ),
        ),
        f"{_PARROT}, figure 18: 40 ShareGPT chats at a uniform 1 request/s and 9 map-reduce jobs (chunk 1024, "
        "output 50) from 15 s on with gaps 0.5, 0.5, 10 s",
        "chat lengths uniform within the published bounds (prompt <= 1,024, total <= 2,048)",
    ),
    "paper": Preset(
        (
            Stream("sequential", 6, params=_CHAIN, users=16, rate=0.1),
            Stream("interactive", 24, params=_BING, users=16, rate=0.4, scale=0.49),
            Stream("agentic", 2, params={"files": 4}, users=16, rate=0.03, scale=0.84),
        ),
        f"{_PAPER}: composite of the three other workloads, 16 users",
        _USERS16 + "the mix was not published: weights, rates and scaling are ours",
    ),
    "demo": Preset(
        (
            Stream(
                "sequential",
                6,
                params={"document": "480", "chunk": 96, "output": "30-45"},
                rate=0.3,
                cv=0.5,
                start_s=0.3,
            ),
            Stream(
                "interactive", 66, params={"prefix": 512, "query": "24-96", "output": "40-90"}, rate=2.8, start_s=0.1
            ),
            Stream(
                "agentic",
                7,
                params={
                    "files": 3,
                    "rounds": 1,
                    "task": "40",
                    "design": "60-80",
                    "code": "40-80",
                    "review": "25-45",
                    "revision": "40-70",
                    "coder_guide": 96,
                    "reviewer_guide": 64,
                    "reviser_guide": 64,
                },
                rate=0.3,
                cv=0.5,
                start_s=0.6,
            ),
            Stream(
                "composite",
                36,
                params={
                    "mix": "chat:3,sequential:1",
                    "label": "whole",
                    "chat.prompt": "32-128",
                    "chat.output": "40-100",
                    "sequential.shape": "map-reduce",
                    "sequential.document": "320",
                    "sequential.chunk": "80",
                    "sequential.output": "24-40",
                },
                rate=1.6,
                start_s=0.2,
            ),
        ),
        "joulegraph demo: the four patterns, small enough for a laptop",
        "everything",
    ),
}

TOOL_LOOP = {
    "coding-agent": Preset(
        (
            Stream(
                "tool-loop",
                10,
                params={
                    "system": 15000,
                    "request": "100-1000",
                    "steps": "q(0:3,0.5:41,0.9:131,1:254)",
                    "call": "lognormal(448,1.3)",
                    "result": "lognormal(1300,1.5)",
                    "tool_ms": "q(0:20,0.5:176,0.9:16700,1:60000)",
                },
                rate=0.05,
            ),
        ),
        "23 saved Weka coding sessions: 41 requests per session at the median, 131 at p90, 254 at most; mean output "
        "448 tokens; about 15k tokens of system prompt and tools. TraceLab: tool time 176 ms at the "
        "median, 16.7 s at p90",
        "tokens per tool result, chosen so that prompts reach the published median of 85k; tool time capped at 60 s",
    ),
}

PRESETS: dict[str, dict[str, Preset]] = {
    "sequential": SEQUENTIAL,
    "interactive": INTERACTIVE,
    "agentic": AGENTIC,
    "composite": COMPOSITE,
    "tool-loop": TOOL_LOOP,
}
