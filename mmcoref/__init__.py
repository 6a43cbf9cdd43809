"""mmcoref: fine-tune and test causal language models on multimodal dialogue coreference."""

__version__ = "0.1.0"
