"""Use cases of executors: dispatch jobs and call HTTP targets."""
