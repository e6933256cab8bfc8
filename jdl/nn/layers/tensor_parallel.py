"""Axes along which tensor-parallel devices split the parameters.

Covers transformers, convolutional networks, capsules and perceptrons. Recurrent layers cannot be divided: each time
step would exchange the whole state.

As in Megatron-LM (Shoeybi et al. 2019, section 3): of two consecutive products, the first is split along its outputs
and the second along its inputs, so that the devices sum once and exchange nothing between the two. A product that
does not follow another one of its kind is split along its outputs.
"""

# Pairs (regular expression, axis). The expression is searched for in paths such as
# "blocks/layer_0/attention/query/kernel", and the first match counts. Axes are counted from the end, because scanned
# layers have one more axis in front. None: such parameters are refused.
TENSOR_PARALLEL: tuple[tuple[str, int | None], ...] = (
    # transformers: heads (never cut if the devices divide their number), hidden features, rows of the vocabulary
    (r"attention/(query|key|value)/(kernel|bias)$", -1),
    (r"attention/out/kernel$", -2),
    (r"feed_forward/(up|gate)/(kernel|bias)$", -1),
    (r"feed_forward/down/kernel$", -2),
    (r"(tokens|embed)/embedding$", -2),
    (r"\b(logits|patches)/(kernel|bias)$", -1),
    # residual blocks: the second convolution reads its inputs on the device where the first computed them
    (r"_block_\d+/conv_1/kernel$", -2),
    (r"_block_\d+/conv_(0|2|shortcut)/kernel$", -1),
    (r"_block_\d+/norm_(0|2|shortcut)/", -1),
    # inverted residuals
    (r"block_\d+/(expand|depthwise)(/kernel$|_norm/)", -1),
    (r"block_\d+/project/kernel$", -2),
    (r"\b(stem|features|stem_conv)(/kernel$|_norm/)", -1),
    # recurrent layers
    (r"recurrent_kernel$", None),
    # capsules: each device computes the votes of its part of the lower capsules, and routing sums over all of them
    (r"Capsules_\d+/kernel$", -4),
    # numbered layers: convolutions along their outputs, dense layers alternately along outputs and inputs
    (r"\b(Conv_\d+/(kernel|bias)$|BatchNorm_\d+/)", -1),
    (r"\bDense_\d*[02468]/(kernel|bias)$", -1),
    (r"\bDense_\d*[13579]/kernel$", -2),
)
