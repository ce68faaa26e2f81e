"""What the whole package agrees on."""

from __future__ import annotations

from typing import Literal

IGNORE_INDEX = 255
"""The label of pixels and nodes that count nowhere: not in a loss, not in a score."""

Amp = bool | Literal["bfloat16", "float16"] | None
"""Whether networks compute in half the bits: true is bfloat16, null is it where a device is fast at
it."""
