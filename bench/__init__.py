"""The benchmark: tuunel and its peers do the same job on loopback, in turn, in one run. How to run and read it: bench/README.md."""
