"""Rules of executors: targets and templates."""
