from .committing import (
    commit_scan as commit_scan,
    finish as finish,
    remove_scan as remove_scan,
    restore_commit as restore_commit,
    sweep as sweep,
)
from .ledger import (
    LedgerEntry as LedgerEntry,
    LedgerFile as LedgerFile,
    mend_ledger as mend_ledger,
    read_failed as read_failed,
    read_ledger as read_ledger,
    write_ledger as write_ledger,
)
from .lifting import (
    lift_scan as lift_scan,
    scans_to_lift as scans_to_lift,
)
from .locks import (
    check_locks as check_locks,
)
from .problems import (
    Problem as Problem,
)
from .scan_writer import (
    write_scan as write_scan,
)
from .verifying import (
    remove_stray as remove_stray,
    verify as verify,
    verify_scan as verify_scan,
)
