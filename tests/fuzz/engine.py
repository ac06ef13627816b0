"""One harness under atheris, in a process of its own: python -m tests.fuzz.engine NAME [option of libFuzzer ...]."""

import gc
import sys

import atheris


def main() -> None:
    """Run until the inputs or the time are used up (exit code 0) or an invariant does not hold."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["tuunel"], enable_loader_override=False):
        from tests.fuzz.suite import HARNESSES  # noqa: PLC0415 - what is imported here is measured
    atheris.enabled_hooks.add("str")
    atheris.Setup(sys.argv, HARNESSES[name].run)
    gc.freeze()  # what the imports made is not looked through again
    atheris.Fuzz()


if __name__ == "__main__":
    main()
