"""Transfer learning: which trained weights a model starts from, which of its parameters are trained, and how fast.

    body = jdl.pretrained.load("model.safetensors", jdl.pretrained.BERT, like)
    variables = jdl.transfer.graft(body, "encoder/encoder")  # for Classifier(Pooled(BERT(...)))
    optimizer = jdl.transfer.freeze(optax.adamw(2e-5), "tokens|positions|types")
    learner = jdl.supervised(model, loss, optimizer, example=data, variables=variables)

`lora` adapts a frozen model with low-rank matrices; `pretrained` reads and writes the weights of other libraries.
"""

from jdl.transfer.rates import freeze, layerwise_decay, scale_by_path, unfreeze_gradually
from jdl.transfer.variables import cut, features, graft, take

__all__ = ["cut", "features", "freeze", "graft", "layerwise_decay", "scale_by_path", "take", "unfreeze_gradually"]
