"""Help to test what is built on this package, and what fulfils its ports.

`given` and `when` test aggregates; a `scenario`, which the pytest plugin gives, tests handlers and
subscriptions; `check_schemas` tests that stored events stay readable; `event_store_contract` and
`snapshot_store_contract` have what every store passes.
"""

import sys

from .given_when_then import given, when
from .schemas import check_schemas

__all__ = ["check_schemas", "given", "when"]

# Before the contracts are imported, so that their failures show what was compared.
if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(
        f"{__name__}.event_store", f"{__name__}.snapshot_store_contract"
    )
