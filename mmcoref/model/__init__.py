"""The causal language model: its weights, its training, its answers."""
