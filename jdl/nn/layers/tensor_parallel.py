"""Which axis of which parameter tensor-parallel devices share out: transformers, convolutional networks, perceptrons.

As in Megatron-LM (Shoeybi et al. 2019, section 3): of two products that follow each other, the first is split by its
outputs and the second by its inputs, so that the devices add up once and exchange nothing between the two. Where a
product follows none of its kind, its outputs are split.
"""

# (regular expression, axis counted from the last): found in a path such as "blocks/layer_0/attention/query/kernel",
# the first that matches counts. Counted from the end, since layers that are scanned have one more axis in front.
TENSOR_PARALLEL: tuple[tuple[str, int], ...] = (
    # transformers: heads (whole ones where the devices divide their number), hidden features, rows of the vocabulary
    (r"attention/(query|key|value)/(kernel|bias)$", -1),
    (r"attention/out/kernel$", -2),
    (r"feed_forward/(up|gate)/(kernel|bias)$", -1),
    (r"feed_forward/down/kernel$", -2),
    (r"(tokens|embed)/embedding$", -2),
    (r"\b(logits|patches)/(kernel|bias)$", -1),
    # residual blocks: the second convolution takes its inputs where the first has made them
    (r"_block_\d+/conv_1/kernel$", -2),
    (r"_block_\d+/conv_(0|2|shortcut)/kernel$", -1),
    (r"_block_\d+/norm_(0|2|shortcut)/", -1),
    # inverted residuals
    (r"block_\d+/(expand|depthwise)(/kernel$|_norm/)", -1),
    (r"block_\d+/project/kernel$", -2),
    (r"\b(stem|features|stem_conv)(/kernel$|_norm/)", -1),
    # what is numbered: convolutions by their outputs, dense layers in turn
    (r"\b(Conv_\d+/(kernel|bias)$|BatchNorm_\d+/)", -1),
    (r"\bDense_\d*[02468]/(kernel|bias)$", -1),
    (r"\bDense_\d*[13579]/kernel$", -2),
)
