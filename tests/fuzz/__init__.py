"""Fuzzing: one harness for each parser that a stranger can reach. docs/spec/proofs.md has the table of what they found.

A harness is a plain function of bytes that raises when its invariant, the first line of its docstring, does not hold. The ordinary
suite replays every harness's seeds and corpus; `make fuzz` drives it with coverage-guided inputs.
"""
