"""Metal kernels, each beside the plain operations that define it; one launcher decides which of the two runs."""
