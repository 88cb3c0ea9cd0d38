"""Send the shop's orders to whichever worker runs: `python -m sample_app.send`."""

from __future__ import annotations

import sample_app.app  # noqa: F401  it sends the commands
from sample_app.data import read_orders
from sample_app.orders import command_of


def send_orders() -> int:
    """Send a command for each order; returns how many."""
    orders = read_orders()
    for order in orders:
        command_of(order).delay()
    return len(orders)


if __name__ == "__main__":
    print(f"{send_orders()} commands sent")
