"""The work of the background functions: matcher, fan_out and sweeper."""
