"""Name tables for `merge`: regular expressions of PyTorch's names → Flax's paths.

One constant per family, made of rows of `_linear` and `_norm`; a comment above it names
the module whose variables it fills. A backbone has no classifier, so that of the
weights, which knows other classes, is dropped.
"""

from crossres_jax.pretrained.merge import Table


def _linear(source: str, target: str) -> Table:
    """A convolution or a dense layer, with or without a bias."""
    return (
        (rf"{source}\.weight", f"params/{target}/kernel"),
        (rf"{source}\.bias", f"params/{target}/bias"),
    )


def _norm(source: str, target: str) -> Table:
    """A batch normalisation; the count of its batches is dropped."""
    return (
        (rf"{source}\.weight", f"params/{target}/scale"),
        (rf"{source}\.bias", f"params/{target}/bias"),
        (rf"{source}\.running_mean", f"batch_stats/{target}/mean"),
        (rf"{source}\.running_var", f"batch_stats/{target}/var"),
        (rf"{source}\.num_batches_tracked", ""),
    )


def _linear_norm(source: str, target: str) -> Table:
    """A Sequential of a convolution and a normalisation: our `ConvNormRelu`."""
    return (
        *_linear(rf"{source}\.0", f"{target}/conv"),
        *_norm(rf"{source}\.1", f"{target}/bn"),
    )


def _unit(source: str, target: str) -> Table:
    """OSNet's convolution with its normalisation: our `ConvNormRelu`."""
    return (
        *_linear(rf"{source}\.conv", f"{target}/conv"),
        *_norm(rf"{source}\.bn", f"{target}/bn"),
    )


def _light_unit(source: str, target: str) -> Table:
    """OSNet's Lite 3×3: a 1×1 and a depthwise 3×3 convolution, one normalisation."""
    return (
        *_linear(rf"{source}\.conv1", f"{target}/conv1"),
        *_linear(rf"{source}\.conv2", f"{target}/conv2"),
        *_norm(rf"{source}\.bn", f"{target}/bn"),
    )


def _residual(source: str, target: str) -> Table:
    """torchvision's BasicBlock or Bottleneck: ours."""
    return (
        *_linear(rf"{source}\.conv1", f"{target}/conv1"),
        *_norm(rf"{source}\.bn1", f"{target}/bn1"),
        *_linear(rf"{source}\.conv2", f"{target}/conv2"),
        *_norm(rf"{source}\.bn2", f"{target}/bn2"),
        *_linear(rf"{source}\.conv3", f"{target}/conv3"),
        *_norm(rf"{source}\.bn3", f"{target}/bn3"),
        *_linear(rf"{source}\.downsample\.0", f"{target}/shortcut_conv"),
        *_norm(rf"{source}\.downsample\.1", f"{target}/shortcut_bn"),
    )


# modules.hrnet.HRNetC ← the authors' HRNet-Image-Classification, and timm's
# hrnet_w32, which keeps their names. fuse_layers.I.J leads from branch J to branch I.
_FUSE = r"stage(\d)\.(\d+)\.fuse_layers\.(\d)\.(\d)"
HRNET = (
    *_linear("conv1", "body/stem1/conv"),
    *_norm("bn1", "body/stem1/bn"),
    *_linear("conv2", "body/stem2/conv"),
    *_norm("bn2", "body/stem2/bn"),
    *_residual(r"layer1\.(\d+)", r"body/layer1_\1"),
    *_linear_norm(r"transition1\.0", "body/transition1_0"),
    *_linear_norm(r"transition(\d)\.(\d)\.0", r"body/transition\1_\2"),
    *_residual(
        r"stage(\d)\.(\d+)\.branches\.(\d)\.(\d+)", r"body/stage\1_\2/b\3_block\4"
    ),
    *_linear_norm(_FUSE, r"body/stage\1_\2/up_\4_to_\3"),
    *_linear_norm(rf"{_FUSE}\.(\d)", r"body/stage\1_\2/down_\4_to_\3_\5"),
    *_residual(r"incre_modules\.(\d)\.0", r"incre/incre\1"),
    *_linear_norm(r"downsamp_modules\.0", "downsample1"),
    *_linear_norm(r"downsamp_modules\.1", "downsample2"),
    *_linear_norm(r"downsamp_modules\.2", "downsample3"),
    *_linear_norm("final_layer", "final"),
    (r"classifier\.(weight|bias)", ""),
)


def _resnet(prefix: str) -> Table:
    """torchvision's and timm's resnet50, under a path."""
    return (
        *_linear("conv1", f"{prefix}conv1"),
        *_norm("bn1", f"{prefix}bn1"),
        *_residual(r"layer(\d)\.(\d+)", rf"{prefix}layer\1_\2"),
        (r"fc\.(weight|bias)", ""),
    )


# modules.resnet.ResNet, and methods.ffsr_rife.Extractor of one or two of it.
RESNET = _resnet("")
ONE_RESNET = _resnet("body/resnet/")
TWO_RESNETS = (*_resnet("body/dsb/low/net/"), *_resnet("body/dsb/high/net/"))

# methods.ffsr_rife.Extractor of RIFE: both streams of a block start from one stage.
RIFE = (
    *_linear("conv1", "body/stem/conv1"),
    *_norm("bn1", "body/stem/bn1"),
    *_residual(r"layer(\d)\.(\d+)", r"body/dsb\1/low/block\2"),
    *_residual(r"layer(\d)\.(\d+)", r"body/dsb\1/high/block\2"),
    (r"fc\.(weight|bias)", ""),
)

# methods.ftwa.ShallowEncoder and ReIDEncoder, which share a ResNet out.
SHALLOW_RESNET = (
    *_linear("conv1", "stem/conv1"),
    *_norm("bn1", "stem/bn1"),
    *_residual(r"layer1\.(\d+)", r"stage1/block\1"),
    (r"(layer[234]|fc)\..*", ""),
)
DEEP_RESNET = (
    *_residual(r"layer([234])\.(\d+)", r"stage\1/block\2"),
    (r"(conv1|bn1|layer1|fc)\..*", ""),
)

# methods.dgrl: ShallowExtractor, Body, and the Sides, whose bottlenecks are of the kind
# of the third and of the last stage.
DGRL_SHALLOW = (
    *_linear("conv1", "stem/conv1"),
    *_norm("bn1", "stem/bn1"),
    (r"(layer\d|fc)\..*", ""),
)
DGRL_BODY = (
    *_residual(r"layer(\d)\.(\d+)", r"stage\1/block\2"),
    (r"(conv1|bn1|fc)\..*", ""),
)
DGRL_SIDE1 = (
    *_residual(r"layer3\.([012])", r"stage1/block\1"),
    *_residual(r"layer4\.([01])", r"stage2/block\1"),
    (r"(conv1|bn1|layer[12]|layer3\.[3-5]|layer4\.2|fc)\..*", ""),
)
DGRL_SIDE2 = (
    *_residual(r"layer4\.(\d)", r"stage1/block\1"),
    (r"(conv1|bn1|layer[123]|fc)\..*", ""),
)

# modules.osnet.OSNet ← the authors' files. A stream that has one layer (conv2a) does
# not number it.
_BLOCK = r"conv(\d)\.(\d)"
OSNET = (
    *_unit("conv(1|5)", r"conv\1"),
    *_unit(r"conv(\d)\.2\.0", r"transition\1"),
    *_unit(rf"{_BLOCK}\.(conv1|conv3|downsample)", r"conv\1_\2/\3"),
    *_light_unit(rf"{_BLOCK}\.conv2a", r"conv\1_\2/conv2a_0"),
    *_light_unit(rf"{_BLOCK}\.(conv2[bcd])\.(\d)", r"conv\1_\2/\3_\4"),
    *_linear(rf"{_BLOCK}\.gate\.fc1", r"conv\1_\2/gate/down"),
    *_linear(rf"{_BLOCK}\.gate\.fc2", r"conv\1_\2/gate/up"),
    *_linear(r"fc\.0", "fc"),
    *_norm(r"fc\.1", "bn"),
    (r"classifier\.(weight|bias)", ""),
)

# modules.rcan.RCAN ← the authors' files, for pixels of 0 to 255 less DIV2K's mean.
_RCAN_BLOCK = r"body\.(\d+)\.body\.(\d+)\.body"
RCAN = (
    *_linear(r"head\.0", "first"),
    *_linear(rf"{_RCAN_BLOCK}\.0", r"group\1/block\2/conv1"),
    *_linear(rf"{_RCAN_BLOCK}\.2", r"group\1/block\2/conv2"),
    *_linear(rf"{_RCAN_BLOCK}\.3\.conv_du\.0", r"group\1/block\2/attention/down"),
    *_linear(rf"{_RCAN_BLOCK}\.3\.conv_du\.2", r"group\1/block\2/attention/up"),
    *_linear(r"body\.(\d+)\.body\.\d+", r"group\1/conv"),
    *_linear(r"body\.\d+", "conv"),
    *_linear(r"tail\.0\.0", "up0"),
    *_linear(r"tail\.0\.2", "up1"),
    *_linear(r"tail\.1", "last"),
    (r"(sub|add)_mean\.(weight|bias)", ""),
)

# modules.vdsr.VDSR(squeeze=0) ← the PyTorch VDSR on the luminance channel whose 20
# convolutions are `input`, `residual_layer` and `output`.
VDSR = (
    *_linear("input", "layer0/conv"),
    *(
        row
        for n in range(18)
        for row in _linear(rf"residual_layer\.{n}\.conv", f"layer{n + 1}/conv")
    ),
    *_linear("output", "conv19"),
)
