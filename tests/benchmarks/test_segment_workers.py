"""The table of `benchmarks/segment_workers.py` compares each row with the first one."""

from __future__ import annotations

import benchmarks.segment_workers as script


def test_rows_are_compared_with_the_first_one() -> None:
    def row(workers: int, seconds: float, labels: str) -> dict[str, object]:
        return {
            "workers": workers,
            "targets": 10,
            "seconds": seconds,
            "labels": labels,
            "largest_process_gib": 0.5,
        }

    lines = script.table_of([row(1, 60.0, "a"), row(2, 30.0, "a"), row(4, 20.0, "b")]).splitlines()[2:]
    assert [line.split(" | ")[3:6] for line in lines] == [
        ["10.0", "1.00", "yes"],
        ["20.0", "2.00", "yes"],
        ["30.0", "3.00", "NO"],
    ]
