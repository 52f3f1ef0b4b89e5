"""A command in a stack: namespaces, mounts, user, terminal; from the image's config to an exit code."""
