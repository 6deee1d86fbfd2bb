"""A server of OpenAI's protocols (and Anthropic's), where every request has its own preference."""
