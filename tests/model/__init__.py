"""The whole system in one process, on a network and a clock that the test holds in its hands."""
