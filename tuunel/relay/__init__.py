"""The relay and everything that is said between a proxy and a relay. Nothing here may import the end-to-end code."""
