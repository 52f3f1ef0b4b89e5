"""Images made of other images: a layer more, a layer less, another config, a container's changes.

What changes is the documents and at most one layer. The new image goes the way of every other: its documents name it,
and a pull has it unpacked, proven, settled and recorded, from this process instead of a registry.
"""
