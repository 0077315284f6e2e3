"""Names to weights: a catalogue name, a folder, a GGUF file or a hub id becomes an ordinary local model folder."""
