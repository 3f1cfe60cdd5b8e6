"""Residual networks (He et al. 2015, arXiv:1512.03385), and plain ones without shortcuts to compare them with.

The modules have the names that torchvision and timm give them, so that a state dict of the one loads into
the other; the network has those of timm's methods that the rest of the pipeline calls. Modules are made and
initialised in timm's order: the same seed gives the same weights.
"""

from typing import Any, Literal

from pydantic import model_validator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.types import Count, Section


class Design(Section):
    """How a network is built; any of it can be set as `model.options`."""

    blocks: tuple[Count, ...] = (2, 2, 2, 2)
    """residual blocks of each stage; every stage but the first halves height and width and doubles the channels"""
    bottleneck: bool = False
    """blocks of three convolutions, 1x1, 3x3 and 1x1, instead of two of 3x3"""
    width: Count = 64
    """channels of the stem and of the first stage's 3x3 convolutions"""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 with stride 2, then max pooling with stride 2; small: 3x3, for images of some 32 px"""
    in_channels: Count = 3
    residual: bool = True
    """false: a plain network, the same layers without shortcuts"""
    shortcut: Literal["A", "B", "C"] = "B"
    """A: zeros for new channels, no weights; B: 1x1 convolution where the shape changes; C: everywhere"""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """which convolution of a bottleneck halves the size: torchvision's and timm's 3x3, or He et al.'s first 1x1"""
    zero_init: bool | None = None
    """start the last norm of every block at 0 (Goyal et al. 2017, arXiv:1706.02677); null: in residual networks"""

    @model_validator(mode="after")
    def _agree(self) -> "Design":
        if not self.blocks:
            raise ValueError("blocks is empty; give the number of blocks of each stage, such as [2, 2, 2]")
        if self.zero_init and not self.residual:
            raise ValueError("zero_init would silence a plain network; set it to false or residual to true")
        if not self.residual and self.shortcut != "B":
            raise ValueError("a plain network has no shortcut; drop shortcut or set residual=true")
        if self.stride_in == "1x1" and not self.bottleneck:
            raise ValueError("stride_in: these blocks have no 1x1 convolution; it is for bottleneck networks")
        return self


PREFIX = "plumage/"
DESIGNS = {
    "plumage/resnet18": Design(),
    "plumage/resnet34": Design(blocks=(3, 4, 6, 3)),
    "plumage/resnet50": Design(blocks=(3, 4, 6, 3), bottleneck=True),
    "plumage/resnet101": Design(blocks=(3, 4, 23, 3), bottleneck=True),
    "plumage/resnet152": Design(blocks=(3, 8, 36, 3), bottleneck=True),
    # He et al.'s family for CIFAR-10 (section 4.2) has n blocks a stage, 6n + 2 layers: this is n = 2 with [2, 2, 2].
    "plumage/resnet_small": Design(blocks=(2, 2, 2), width=16, stem="small"),
}
# timm's networks whose ImageNet weights fit: those of torchvision, the first that it published.
WEIGHTS = {f"{PREFIX}resnet{depth}": f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)}


class ZeroPadding(nn.Module):
    """Shortcut A: every `stride`-th place, and zeros for the channels that are new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D + new_channels, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Block(nn.Module):
    """Convolutions with norms, and the shortcut around them; channels grow to `expansion * width`."""

    expansion: int
    relu: nn.Module
    drop_path: nn.Module
    downsample: nn.Module | None  # torchvision's name of the shortcut's layers; None: a plain network

    def layers(self, x: Tensor) -> Tensor:
        """The convolutions, up to the last norm."""
        raise NotImplementedError

    def last_norm(self) -> nn.BatchNorm2d:
        """What `zero_init` sets to 0."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, expansion * width, H / stride, W / stride]."""
        y = self.layers(x)
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, design: Design, drop_path: float) -> None:
        """channels: of the input."""
        super().__init__()
        shortcut = make_shortcut(channels, width, stride, design)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample = shortcut

    def layers(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2


class Bottleneck(Block):
    """A 1x1 convolution to fewer channels, a 3x3 one, and a 1x1 one to four times as many."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, design: Design, drop_path: float) -> None:
        """channels: of the input."""
        super().__init__()
        shortcut = make_shortcut(channels, width * self.expansion, stride, design)
        first, second = (stride, 1) if design.stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample = shortcut

    def layers(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3


def make_shortcut(channels_in: int, channels_out: int, stride: int, design: Design) -> nn.Module | None:
    """What makes the input of a block fit its output; None in a plain network."""
    same_shape = stride == 1 and channels_in == channels_out
    if not design.residual:
        return None
    if same_shape and design.shortcut != "C":
        return nn.Identity()
    if design.shortcut == "A":
        return ZeroPadding(channels_out - channels_in, stride)
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class ResNet(nn.Module):
    """float [B, in_channels, H, W], normalised -> logits [B, classes]."""

    def __init__(
        self,
        design: Design,
        classes: int = 1000,
        *,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        pool: str = "avg",
    ) -> None:
        """Weights as He et al. 2015 (arXiv:1502.01852) draw them, by the number of outputs; see also `zero_init`.

        Args:
            dropout: before the classifier.
            stochastic_depth: share of the last block's images that skip it in training, falling linearly to
                none in the first block (Huang et al. 2016, arXiv:1603.09382).
            pool: avg, max or avgmax.
        """
        super().__init__()
        self.in_chans, self.dropout = design.in_channels, dropout
        self.pretrained_cfg: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        width = design.width
        if design.stem == "imagenet":
            self.conv1 = nn.Conv2d(design.in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(design.in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        pooled = design.stem == "imagenet"
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
        self.feature_info: list[dict[str, Any]] = [
            {"module": "relu", "num_chs": width, "reduction": 2 if pooled else 1}
        ]
        self._make_stages(design, stochastic_depth)
        self.num_features = self.feature_info[-1]["num_chs"]
        self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=True)
        self.fc = nn.Linear(self.num_features, classes)
        self._draw_weights(design.residual if design.zero_init is None else design.zero_init)

    def _make_stages(self, design: Design, stochastic_depth: float) -> None:
        block = Bottleneck if design.bottleneck else BasicBlock
        channels, done, reduction = design.width, 0, 4 if design.stem == "imagenet" else 1
        for stage, count in enumerate(design.blocks):
            width, stride = design.width * 2**stage, 1 if stage == 0 else 2
            blocks: list[nn.Module] = []
            for number in range(count):
                drop_path = stochastic_depth * done / max(1, sum(design.blocks) - 1)
                blocks.append(block(channels, width, stride if number == 0 else 1, design, drop_path))
                channels, done = width * block.expansion, done + 1
            reduction *= stride
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.feature_info.append(
                {"module": f"layer{stage + 1}", "num_chs": channels, "reduction": reduction}
            )

    def _draw_weights(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if zero_init and isinstance(module, Block):
                nn.init.zeros_(module.last_norm().weight)

    def forward(self, x: Tensor) -> Tensor:
        """The logits: [B, classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: [B, D, h, w]."""
        return self.forward_intermediates(x, 1)[0]

    def forward_intermediates(self, x: Tensor, indices: int) -> tuple[Tensor, list[Tensor]]:
        """The last feature map, and those of the last `indices` stages."""
        maps = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(maps[0])
        for stage in self.feature_info[1:]:
            x = self.get_submodule(stage["module"])(x)
            maps.append(x)
        return x, maps[-indices:]

    def forward_head(self, x: Tensor) -> Tensor:
        """The last feature map, pooled and classified: [B, classes]."""
        logits: Tensor = self.fc(F.dropout(self.global_pool(x), self.dropout, self.training))
        return logits

    def get_classifier(self) -> nn.Linear:
        """The last layer."""
        return self.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names from the stem to the head, by stage or by block."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}
