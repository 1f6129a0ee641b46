"""The token ids that a Parrot's contexts hold, as an engine keeps them: a tree in which a child continues its parent.

Pure. May not know: tokenizers, HTTP, who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Context:
    """Token ids of one context and the one it continues."""

    parent: int
    ids: list[int] = field(default_factory=list)


class Contexts:
    """All contexts of one engine, by the core's ids."""

    def __init__(self) -> None:
        self._all: dict[int, Context] = {}

    def open(self, context_id: int, parent_id: int) -> Context:
        """The context, made on first sight."""
        return self._all.setdefault(context_id, Context(parent_id))

    def chain(self, context_id: int) -> list[int]:
        """All ids from the root down. A parent that is gone counts as empty."""
        parts: list[list[int]] = []
        seen: set[int] = set()
        while context_id in self._all and context_id not in seen:
            seen.add(context_id)
            context = self._all[context_id]
            parts.append(context.ids)
            context_id = context.parent
        return [token for part in reversed(parts) for token in part]

    def whole(self, context_id: int) -> bool:
        """Whether the chain leads to a root: no context on the way is missing."""
        seen: set[int] = set()
        while context_id in self._all and context_id not in seen:
            seen.add(context_id)
            context_id = self._all[context_id].parent
        return context_id < 0

    def free(self, context_id: int) -> int:
        """Forget one; its own length."""
        context = self._all.pop(context_id, None)
        return len(context.ids) if context is not None else 0

    def clear(self) -> None:
        """The core began anew."""
        self._all.clear()

    def __len__(self) -> int:
        return len(self._all)
