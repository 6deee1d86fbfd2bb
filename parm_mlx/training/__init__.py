"""Training a PARM: preference data → a PBLoRA adapter."""
