"""The other side of the parity tests, for a Python with PyTorch and Transformers (and no JAX): `CASE FILE`.

Builds a randomly initialized module and writes an npz with its weights ("w/NAME"), inputs ("x/NAME"), outputs ("y"),
and, computed in double precision, the gradients of sum(outputs * cotangent) for its parameters ("g/NAME"), with the
cotangent ("c").
"""

import sys

import numpy as np
import torch  # type: ignore

TOKENS = {"num_hidden_layers": 12, "hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 384}


def ids(vocabulary: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, shape)


def padding(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


def bert():
    from transformers import BertConfig, BertModel  # type: ignore

    config = BertConfig(vocab_size=211, max_position_embeddings=40, **TOKENS)
    model = BertModel(config, add_pooling_layer=False).eval()
    inputs = {"ids": ids(211, 3, 17), "mask": padding(17, 5, 11), "types": ids(2, 3, 17)}
    return (
        model,
        inputs,
        lambda x: (
            model(input_ids=x["ids"], attention_mask=x["mask"], token_type_ids=x["types"]).last_hidden_state
            * x["mask"][..., None]
        ),
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel  # type: ignore

    config = GPT2Config(vocab_size=211, n_positions=40, n_embd=96, n_layer=12, n_head=6)
    model = GPT2LMHeadModel(config).eval()
    return model, {"ids": ids(211, 3, 17)}, lambda x: model(input_ids=x["ids"]).logits


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore

    config = LlamaConfig(vocab_size=211, max_position_embeddings=40, num_key_value_heads=2, **TOKENS)
    model = LlamaForCausalLM(config).eval()
    return model, {"ids": ids(211, 3, 17)}, lambda x: model(input_ids=x["ids"]).logits


def vit():
    from transformers import ViTConfig, ViTForImageClassification  # type: ignore

    config = ViTConfig(image_size=48, patch_size=8, num_labels=7, **TOKENS)
    model = ViTForImageClassification(config).eval()
    return model, {"images": torch.randn(2, 3, 48, 48)}, lambda x: model(pixel_values=x["images"]).logits


def resnet(train: bool = False):
    from transformers import ResNetConfig, ResNetForImageClassification  # type: ignore

    # The defaults are ResNet-50, version 1.5: the 3 x 3 convolution of a bottleneck strides.
    model = ResNetForImageClassification(ResNetConfig(num_labels=11))
    images = torch.randn(4, 3, 80, 80)
    for module in model.modules():  # normalizations at work, not at their start
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        for _ in range(20):
            model.train()(pixel_values=images)
    return model.train(train), {"images": images}, lambda x: model(pixel_values=x["images"]).logits


def resnet_train():
    return resnet(train=True)


def recurrent(kind: str):
    model = getattr(torch.nn, kind)(13, 24, num_layers=2, bidirectional=True, batch_first=True)
    lengths = torch.tensor([9, 4, 7])

    def run(x):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x["inputs"], x["lengths"], batch_first=True, enforce_sorted=False
        )
        return torch.nn.utils.rnn.pad_packed_sequence(model(packed)[0], batch_first=True)[0]

    return model, {"inputs": torch.randn(3, 9, 13), "lengths": lengths}, run


CASES = {
    **{"bert": bert, "gpt2": gpt2, "llama": llama, "vit": vit, "resnet": resnet, "resnet_train": resnet_train},
    **{kind.lower(): lambda kind=kind: recurrent(kind) for kind in ("RNN", "LSTM", "GRU")},
}


def main(case: str, path: str) -> None:
    torch.manual_seed(0)
    model, inputs, run = CASES[case]()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        outputs = run(inputs)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    model.double()
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    cotangent = torch.randn(outputs.shape, dtype=torch.float64)
    (run(doubled) * cotangent).sum().backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    np.savez(
        path,
        y=outputs.numpy(),
        c=cotangent.numpy(),
        **{f"w/{name}": value for name, value in state.items()},
        **{f"g/{name}": value for name, value in gradients.items()},
        **{f"x/{name}": value.numpy() for name, value in inputs.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
