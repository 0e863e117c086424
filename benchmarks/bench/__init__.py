"""The test bench: does pretraining teach, on which anatomies, and more than what users would take instead?

    python -m benchmarks.bench OUT --dry-run      the list of cells, and how long they take
    python -m benchmarks.bench OUT --quick        a small form on drawn shapes
    python -m benchmarks.bench OUT --manifest MANIFEST --stores hippocampus=STORE

A cell is (set, arm, use, seed): `sets` says what is segmented, `arms` how the network was pretrained, `uses`
what is done with it, `plan` which cells there are, `report` what comes of them. How to run it, and what it
compares: docs/bench.md.
"""
