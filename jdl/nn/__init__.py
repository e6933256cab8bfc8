"""Reusable Flax modules, one family a file; they know no training."""

from jdl.nn.attention import AdditiveAttention, MultiHeadAttention, padding_mask, segment_mask
from jdl.nn.bert import BERT
from jdl.nn.capsules import CapsNet, Capsules, PrimaryCapsules, route, squash
from jdl.nn.convolution import Conv, conv_general_dilated
from jdl.nn.encoder_decoder import EncoderDecoder
from jdl.nn.gpt import GPT
from jdl.nn.heads import Classifier, Pooled
from jdl.nn.lenet import LeNet5
from jdl.nn.mlp import MLP
from jdl.nn.mobilenet import EfficientNetLite, MobileNet, MobileNetV2, Stage
from jdl.nn.normalization import normalization
from jdl.nn.pooling import max_pool
from jdl.nn.positions import rotary, sinusoidal
from jdl.nn.recurrent import Recurrent, RecurrentLayer
from jdl.nn.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101
from jdl.nn.stochastic_depth import StochasticDepth
from jdl.nn.tensor_parallel import TENSOR_PARALLEL
from jdl.nn.tokens import Tokens
from jdl.nn.transformer import FeedForward, Stack, TransformerBlock
from jdl.nn.unet import UNet
from jdl.nn.vgg import VGG, VGG11, VGG16
from jdl.nn.vit import ViT
from jdl.nn.wide_resnet import WideResNet

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
