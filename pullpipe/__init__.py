"""pullpipe: pull an OCI or Docker image while unpacking it, stack its layers with overlayfs, run a command in it."""

__version__ = "0.1.0"
