"""The manifest line of a trace file: checked, read, written.

Lives here: what each of its fields must be. May not know: rows, files.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from traces.errors import UserError
from traces.fields import Check, Where, flag, is_int, one_of
from traces.workflow import CONTENT_MODES, FORMAT_VERSION, Manifest

_MANIFEST_HINTS = get_type_hints(Manifest)
_MANIFEST_CHECKS: dict[str, Check] = {
    "version": (
        lambda v: type(v) is int and 1 <= v <= FORMAT_VERSION,
        f"this release reads versions up to {FORMAT_VERSION}; use a newer release",
    ),
    "block_size": (lambda v: is_int(v) and v != 0, "give a whole number of at least 1"),
    "block_rounding": one_of(get_args(_MANIFEST_HINTS["block_rounding"])),
    "hash_scope": one_of(get_args(_MANIFEST_HINTS["hash_scope"])),
    "content_mode": one_of(CONTENT_MODES),
    "block_unit": one_of(get_args(_MANIFEST_HINTS["block_unit"])),
    "tokenizer": (lambda v: v is None or type(v) is str, "give a name or null"),
    "source": (lambda v: v is None or type(v) is str, "give a string or null"),
    "licence": (lambda v: v is None or type(v) is str, "give a string or null"),
    "time_quantum_ms": (
        lambda v: v is None or (type(v) in (int, float) and v > 0),  # type: ignore[operator]
        "give milliseconds above 0, or null",
    ),
    "chained": (flag, "give true or false"),
    "ordered": (flag, "give true or false"),
    "transforms": (lambda v: type(v) is list and all(type(x) is str for x in v), "give a list of sentences"),
}


def parse_manifest(value: object, where: Where) -> Manifest:
    """The object of a manifest line. Unknown keys are ignored, so that older readers survive newer writers."""
    if type(value) is not dict:
        raise UserError(where.fault("manifest", value, "give an object"))
    for name, (good, want) in _MANIFEST_CHECKS.items():
        if name in value and not good(value[name]):
            raise UserError(where.fault(f"manifest.{name}", value[name], want))
    made = {f.name: value[f.name] for f in fields(Manifest) if f.name in value}
    if "transforms" in made:
        made["transforms"] = tuple(made["transforms"])
    return Manifest(**made)


def manifest_row(manifest: Manifest) -> dict[str, Any]:
    """The manifest line of a trace file, every field spelled out. Inverse of parse_manifest."""
    row = {f.name: getattr(manifest, f.name) for f in fields(Manifest)}
    return {"manifest": {**row, "transforms": list(manifest.transforms)}}
