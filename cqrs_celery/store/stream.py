"""The name of a stream, and the special values of its expected version."""

from __future__ import annotations

from typing import Final, NamedTuple

#: No version is expected: append after whatever is there.
ANY_VERSION: Final = -1

#: The stream is expected to be new.
NO_STREAM: Final = 0


class StreamName(NamedTuple):
    """The identity of one aggregate's events: application, aggregate type and aggregate id."""

    application: str
    aggregate_type: str
    aggregate_id: str

    def __str__(self) -> str:
        return f"{self.aggregate_type}-{self.aggregate_id}"

    @property
    def key(self) -> str:
        """The stream's full identity as one text.

        `from_key` can split it, since only the id may contain a colon.
        """
        return f"{self.application}:{self.aggregate_type}:{self.aggregate_id}"

    @classmethod
    def from_key(cls, key: str) -> StreamName:
        """Return the stream name that `key` was made from."""
        return cls(*key.split(":", 2))
