"""Ways to keep a GPU busy: compiled blocks, steps captured as a CUDA graph, values read a step late.

Each changes when work is done, and none changes what a step computes, beyond rounding. On a CPU the trainer
uses none of them unless asked to; the tests use all of them there.
"""
