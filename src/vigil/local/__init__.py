"""The local cloud: the template for AWS, deployed to an AWS emulator on one machine (see docs/local.md)."""

from vigil.local.cloud import running_stack
from vigil.local.errors import LocalError
from vigil.local.stack import Stack
from vigil.local.state_dir import StateDir

__all__ = ["LocalError", "Stack", "StateDir", "running_stack"]
