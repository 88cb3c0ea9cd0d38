"""The application of the workers of `tests.chaos.wear`: it notes each event that it handles.

A worker runs `tests.chaos.wear_app`; its settings come in WEAR_CONF, its journal's path in
WEAR_JOURNAL, and in WEAR_DJANGO the URL of Django's database, if the events are in that.
"""

from __future__ import annotations

import json
import os

from celery import Celery

from cqrs_celery import CQRS, Event, RecordedEvent, subscribes

app = Celery("inventory")
app.conf.update(json.loads(os.environ["WEAR_CONF"]))

if os.environ.get("WEAR_DJANGO"):
    from tests import playhouse

    playhouse.choose_database(os.environ["WEAR_DJANGO"])

cqrs = CQRS(app)

journal = os.open(os.environ["WEAR_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


class ItemsCheckedIn(Event, name="inventory.items_checked_in"):
    count: int


@subscribes(ItemsCheckedIn, subscription="inventory.note")
def note(event: ItemsCheckedIn, recorded: RecordedEvent[ItemsCheckedIn]) -> None:
    os.write(journal, f"{os.getpid()} {recorded.event_id}\n".encode())
