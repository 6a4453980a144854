"""hubq: from a model on the Hugging Face Hub to a release of measured, quantized variants."""

__version__ = "0.1.0"
