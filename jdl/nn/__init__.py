"""Reusable Flax modules, one family per file; they do not depend on any training code."""

from jdl.nn.layers.attention import AdditiveAttention, MultiHeadAttention, padding_mask, segment_mask
from jdl.nn.layers.capsules import CapsNet, Capsules, PrimaryCapsules, route, squash
from jdl.nn.layers.convolution import Conv, conv_general_dilated
from jdl.nn.layers.heads import Classifier, Pooled
from jdl.nn.layers.normalization import normalization
from jdl.nn.layers.pooling import max_pool
from jdl.nn.layers.positions import rotary, sinusoidal
from jdl.nn.layers.recurrent import Recurrent, RecurrentLayer
from jdl.nn.layers.stochastic_depth import StochasticDepth
from jdl.nn.layers.tensor_parallel import TENSOR_PARALLEL
from jdl.nn.layers.tokens import Tokens
from jdl.nn.layers.transformer import FeedForward, Stack, TransformerBlock
from jdl.nn.networks.bert import BERT
from jdl.nn.networks.encoder_decoder import EncoderDecoder
from jdl.nn.networks.gpt import GPT
from jdl.nn.networks.lenet import LeNet5
from jdl.nn.networks.mlp import MLP
from jdl.nn.networks.mobilenet import EfficientNetLite, MobileNet, MobileNetV2, Stage
from jdl.nn.networks.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101
from jdl.nn.networks.unet import UNet
from jdl.nn.networks.vgg import VGG, VGG11, VGG16
from jdl.nn.networks.vit import ViT
from jdl.nn.networks.wide_resnet import WideResNet

__all__ = [
    "BERT",
    "GPT",
    "MLP",
    "TENSOR_PARALLEL",
    "VGG",
    "VGG11",
    "VGG16",
    "AdditiveAttention",
    "CapsNet",
    "Capsules",
    "Classifier",
    "Conv",
    "EfficientNetLite",
    "EncoderDecoder",
    "FeedForward",
    "LeNet5",
    "MobileNet",
    "MobileNetV2",
    "MultiHeadAttention",
    "Pooled",
    "PrimaryCapsules",
    "Recurrent",
    "RecurrentLayer",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "Stack",
    "Stage",
    "StochasticDepth",
    "Tokens",
    "TransformerBlock",
    "UNet",
    "ViT",
    "WideResNet",
    "conv_general_dilated",
    "max_pool",
    "normalization",
    "padding_mask",
    "rotary",
    "route",
    "segment_mask",
    "sinusoidal",
    "squash",
]
