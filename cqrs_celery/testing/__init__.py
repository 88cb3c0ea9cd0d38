"""Help to test what is built on this package, and what fulfils its ports.

`given` and `when` test aggregates; a `scenario`, which the pytest plugin gives, tests handlers and
subscriptions; `check_schemas` tests that stored events stay readable; `event_store_contract` has
what every event store passes.
"""

import sys

from .given_when_then import given, when
from .schemas import check_schemas

__all__ = ["check_schemas", "given", "when"]

# Before the contract is imported, so that its failures show what was compared.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(f"{__name__}.event_store_contract")
