"""Finding out how good the way to a device is, and which part of it is broken: ping, why, bench."""
