"""The package for users of Vigil: client, worker, command line and local cloud."""
