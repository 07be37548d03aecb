"""The pure core: no I/O, no clock, no randomness, no environment. Whatever it needs comes in as an argument."""
