"""The pure core: no I/O, clock, randomness or environment. Every input is an argument."""
