"""Looking into images: what they are made of, and what is in them. Nothing is mounted or changed.

chosen      REF#N: an image, or one layer of it
layers      what is known of an image's layers and of how it was made
view        the tree that layers come to, or what one has alone
changes     how two such trees differ
family      which images are built on which
explain     the shell commands that do what `run` does; `unpacking` those for layers
"""
