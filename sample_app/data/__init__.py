"""A few weeks of a small shop: what was delivered, sold, renamed, and what went wrong.

`shop.jsonl` has one order a line, in the shop's own words. `generate.py` has made it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

#: The orders that come with the sample.
SHOP: Final = Path(__file__).with_name("shop.jsonl")

#: An order: `do`, `item`, and a `name` or `count` where there is one.
Order = dict[str, Any]


def read_orders(path: Path = SHOP) -> list[Order]:
    """Return the orders of a file, in the order in which they were given."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
