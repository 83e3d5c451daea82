"""Benchmarks: what a message costs us, and what it costs others, on the same bytes in the same process.

`python -m benchmarks decode | replay | memory | all`. `harness` measures, `corpus` has the messages and what they
should say, `__main__` prints. docs/explanation/performance.md says what the figures mean.
"""
