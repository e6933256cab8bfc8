"""Language models and text generation."""

from jdl.text.generate import generate, sample
from jdl.text.language_model import RecurrentLanguageModel

__all__ = ["RecurrentLanguageModel", "generate", "sample"]
