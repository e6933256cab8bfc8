"""Systems that read and write text."""

from jdl.text.generate import generate, sample
from jdl.text.language_model import RecurrentLanguageModel

__all__ = ["RecurrentLanguageModel", "generate", "sample"]
