"""The heart: layers flow once, network → blob file → inflate → tar → files, all of them at the same time."""
