"""Names of the weights of well-known architectures, in the files of Hugging Face, PyTorch and others."""

import numpy as np

from jdl.transfer.pretrained.keymap import KeyMap, Layout, Rule, conv, dense, fused, patches, same, summed


def _both(theirs: str, ours: str, layout: Layout = dense) -> list[Rule]:
    """Rules for the weight and bias of a layer."""
    return [Rule(f"{theirs}.weight", f"{ours}/kernel", layout), Rule(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def _tensorflow_norm(theirs: str, ours: str) -> list[Rule]:
    """Rules for normalization in the files of the first BERTs, which were converted from TensorFlow's."""
    return [Rule(f"{theirs}.gamma", f"{ours}/scale"), Rule(f"{theirs}.beta", f"{ours}/bias")]


def _batch_norm(theirs: str, ours: str) -> list[Rule]:
    return [
        *_norm(theirs, f"params/{ours}"),
        Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
        Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
    ]


_BLOCK = "params/blocks/layer_{n}"

BERT = KeyMap(
    [
        Rule("bert.embeddings.word_embeddings.weight", "params/tokens/embedding"),
        Rule("bert.embeddings.position_embeddings.weight", "params/positions/embedding"),
        Rule("bert.embeddings.token_type_embeddings.weight", "params/types/embedding"),
        *_norm("bert.embeddings.LayerNorm", "params/norm"),
        *_both("bert.encoder.layer.{n}.attention.self.query", f"{_BLOCK}/attention/query"),
        *_both("bert.encoder.layer.{n}.attention.self.key", f"{_BLOCK}/attention/key"),
        *_both("bert.encoder.layer.{n}.attention.self.value", f"{_BLOCK}/attention/value"),
        *_both("bert.encoder.layer.{n}.attention.output.dense", f"{_BLOCK}/attention/out"),
        *_norm("bert.encoder.layer.{n}.attention.output.LayerNorm", f"{_BLOCK}/attention_norm"),
        *_both("bert.encoder.layer.{n}.intermediate.dense", f"{_BLOCK}/feed_forward/up"),
        *_both("bert.encoder.layer.{n}.output.dense", f"{_BLOCK}/feed_forward/down"),
        *_norm("bert.encoder.layer.{n}.output.LayerNorm", f"{_BLOCK}/feed_forward_norm"),
        *_tensorflow_norm("bert.embeddings.LayerNorm", "params/norm"),
        *_tensorflow_norm("bert.encoder.layer.{n}.attention.output.LayerNorm", f"{_BLOCK}/attention_norm"),
        *_tensorflow_norm("bert.encoder.layer.{n}.output.LayerNorm", f"{_BLOCK}/feed_forward_norm"),
    ],
    prefix="bert.",
    ignored=(r"position_ids$", r"^cls\.", r"^bert\.pooler\."),  # buffers and heads
)

# GPT-2 keeps its dense layers as [inputs, outputs], as we do; query, key and value are one array.
_GPT2_ATTENTION = tuple(f"{_BLOCK}/attention/{name}" for name in ("query", "key", "value"))
GPT2 = KeyMap(
    [
        Rule("transformer.wte.weight", "params/tokens/embedding"),
        Rule("transformer.wpe.weight", "params/positions/embedding"),
        *_norm("transformer.h.{n}.ln_1", f"{_BLOCK}/attention_norm"),
        Rule("transformer.h.{n}.attn.c_attn.weight", tuple(f"{path}/kernel" for path in _GPT2_ATTENTION), fused(3)),
        Rule("transformer.h.{n}.attn.c_attn.bias", tuple(f"{path}/bias" for path in _GPT2_ATTENTION), fused(3)),
        *_both("transformer.h.{n}.attn.c_proj", f"{_BLOCK}/attention/out", same),
        *_norm("transformer.h.{n}.ln_2", f"{_BLOCK}/feed_forward_norm"),
        *_both("transformer.h.{n}.mlp.c_fc", f"{_BLOCK}/feed_forward/up", same),
        *_both("transformer.h.{n}.mlp.c_proj", f"{_BLOCK}/feed_forward/down", same),
        *_norm("transformer.ln_f", "params/norm"),
    ],
    prefix="transformer.",
    ignored=(r"\.attn\.(masked_)?bias$", r"^lm_head\.weight$"),  # masks; the logits use the embedding's weights
)

LLAMA = KeyMap(
    [
        Rule("model.embed_tokens.weight", "params/tokens/embedding"),
        Rule("model.layers.{n}.input_layernorm.weight", f"{_BLOCK}/attention_norm/scale"),
        *(
            Rule(f"model.layers.{{n}}.self_attn.{theirs}_proj.weight", f"{_BLOCK}/attention/{ours}/kernel", dense)
            for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
        ),
        Rule("model.layers.{n}.post_attention_layernorm.weight", f"{_BLOCK}/feed_forward_norm/scale"),
        *(
            Rule(f"model.layers.{{n}}.mlp.{name}_proj.weight", f"{_BLOCK}/feed_forward/{name}/kernel", dense)
            for name in ("gate", "up", "down")
        ),
        Rule("model.norm.weight", "params/norm/scale"),
        Rule("lm_head.weight", "params/logits/kernel", dense),
    ],
    prefix="model.",
    ignored=(r"rotary_emb\.inv_freq$",),
)


def _vit_layers(layer: str, names: dict[str, str]) -> list[Rule]:
    return [
        *_norm(f"{layer}.layernorm_before", f"{_BLOCK}/attention_norm"),
        *_norm(f"{layer}.layernorm_after", f"{_BLOCK}/feed_forward_norm"),
        *(rule for theirs, ours in names.items() for rule in _both(f"{layer}.{theirs}", f"{_BLOCK}/{ours}")),
    ]


def vit(patch: int) -> KeyMap:
    """Names of the vision transformer's weights, both as in files and as in Transformers since version 5.

    Args:
        patch: side of a patch, in pixels
    """
    in_files = {
        **{f"attention.attention.{name}": f"attention/{name}" for name in ("query", "key", "value")},
        "attention.output.dense": "attention/out",
        "intermediate.dense": "feed_forward/up",
        "output.dense": "feed_forward/down",
    }
    since_5 = {
        **{f"attention.{name[0]}_proj": f"attention/{name}" for name in ("query", "key", "value", "out")},
        **{"mlp.fc1": "feed_forward/up", "mlp.fc2": "feed_forward/down"},
    }
    return KeyMap(
        [
            Rule("vit.embeddings.cls_token", "params/token"),
            Rule("vit.embeddings.position_embeddings", "params/positions"),
            *_both("vit.embeddings.patch_embeddings.projection", "params/patches", patches(patch)),
            *_vit_layers("vit.encoder.layer.{n}", in_files),
            *_vit_layers("vit.layers.{n}", since_5),
            *_norm("vit.layernorm", "params/norm"),
            *_both("classifier", "params/head"),
        ],
        prefix="vit.",
        ignored=(r"^vit\.pooler\.",),
    )


_STAGE = "stage_{s}_block_{b}"
RESNET = KeyMap(
    [
        Rule("resnet.embedder.embedder.convolution.weight", "params/stem_conv/kernel", conv),
        *_batch_norm("resnet.embedder.embedder.normalization", "stem_norm"),
        Rule(
            "resnet.encoder.stages.{s}.layers.{b}.layer.{c}.convolution.weight",
            f"params/{_STAGE}/conv_{{c}}/kernel",
            conv,
        ),
        *_batch_norm("resnet.encoder.stages.{s}.layers.{b}.layer.{c}.normalization", f"{_STAGE}/norm_{{c}}"),
        Rule(
            "resnet.encoder.stages.{s}.layers.{b}.shortcut.convolution.weight",
            f"params/{_STAGE}/conv_shortcut/kernel",
            conv,
        ),
        *_batch_norm("resnet.encoder.stages.{s}.layers.{b}.shortcut.normalization", f"{_STAGE}/norm_shortcut"),
        *_both("classifier.1", "params/head"),
    ],
    prefix="resnet.",
    ignored=(r"num_batches_tracked$",),
)

EFFICIENTNET_LITE = KeyMap(
    [
        Rule("_conv_stem.weight", "params/stem/kernel", conv),
        *_batch_norm("_bn0", "stem_norm"),
        Rule("_blocks.{n}._expand_conv.weight", "params/block_{n}/expand/kernel", conv),
        *_batch_norm("_blocks.{n}._bn0", "block_{n}/expand_norm"),
        Rule("_blocks.{n}._depthwise_conv.weight", "params/block_{n}/depthwise/kernel", conv),
        *_batch_norm("_blocks.{n}._bn1", "block_{n}/depthwise_norm"),
        Rule("_blocks.{n}._project_conv.weight", "params/block_{n}/project/kernel", conv),
        *_batch_norm("_blocks.{n}._bn2", "block_{n}/project_norm"),
        Rule("_conv_head.weight", "params/features/kernel", conv),
        *_batch_norm("_bn1", "features_norm"),
        *_both("_fc", "params/head"),
    ],
    ignored=(r"num_batches_tracked$",),
)


def _recurrent(layout: Layout, *ours: str) -> KeyMap:
    """Names for PyTorch's recurrent modules, which have two biases per layer: for the inputs and for the state."""
    rules = []
    for suffix, way in (("", "forward"), ("_reverse", "backward")):
        layer = f"params/layer_{{n}}_{way}"
        biases = (f"bias_ih_l{{n}}{suffix}", f"bias_hh_l{{n}}{suffix}")
        rules += [
            Rule(f"weight_ih_l{{n}}{suffix}", f"{layer}/input/kernel", dense),
            Rule(f"weight_hh_l{{n}}{suffix}", f"{layer}/recurrent_kernel", dense),
            Rule(biases, tuple(f"{layer}/{name}" for name in ours), layout),
        ]
    return KeyMap(rules)


def _gru_biases(inputs: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add the two biases of both gates; the candidate's state bias stays separate, because it is reset."""
    gates = len(state) // 3 * 2
    return inputs + np.pad(state[:gates], (0, len(state) - gates)), state[gates:]


def _gru_biases_back(inputs: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return inputs, np.pad(candidate, (2 * len(candidate), 0))


RNN = LSTM = _recurrent(summed, "input/bias")
GRU = _recurrent(Layout(_gru_biases, _gru_biases_back), "input/bias", "recurrent_bias")
