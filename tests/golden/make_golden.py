"""Writes the golden files that tests/modules/test_parity.py compares with.

    pip install torch numpy && python tests/golden/make_golden.py

The networks and blocks below are written from the papers in PyTorch, apart from the
library and in float64, with the names of the published weight files; recipe.py gives
their weights and their images. The files were made with torch 2.13 and hold

  tensors: JSON, {name: shape} of the state dict;
  shape: of the images (B, H, W, C);
  the outputs, with channels last, of which every fourth where that is said;
  projections, in some: for each parameter's gradient its scalar product with
    noise("probe " + name), and its norm.
"""

import json
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import recipe
import torch
from torch import nn
from torch.nn import functional

FOLDER = Path(__file__).parent
# Gradients that are kept whole, one of every kind of leaf.
WHOLE = (
    "conv1.conv.weight",
    "conv2.0.gate.fc2.bias",
    "conv2.1.conv2d.3.conv1.weight",
    "conv3.0.conv2c.1.conv2.weight",
    "conv4.1.gate.fc1.weight",
    "conv5.bn.weight",
    "fc.1.bias",
)


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False):
    """Convolution that keeps the sides of its input, up to the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, 1, groups, bias)


# ResNet-50, arXiv:1512.03385; torchvision's names.


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1; `outputs` is four times the width of the 3×3."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        width = outputs // 4
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet50(nn.Module):
    """The four stages; `fc` is there for its name only."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        channels = 64
        for stage, blocks in enumerate((3, 4, 6, 3), start=1):
            layers = []
            for b in range(blocks):
                stride = 2 if b == 0 and stage > 1 else 1
                layers.append(Bottleneck(channels, 128 << stage, stride))
                channels = 128 << stage
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return outputs


# OSNet x0.25, arXiv:1905.00953; the authors' names.


class Unit(nn.Module):
    """Convolution, normalisation and perhaps ReLU."""

    def __init__(self, inputs, outputs, size=1, stride=1, relu=True):
        super().__init__()
        self.conv, self.bn = (
            conv(inputs, outputs, size, stride),
            nn.BatchNorm2d(outputs),
        )
        self.relu = relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return functional.relu(x) if self.relu else x


class Lite(nn.Module):
    """Pointwise and depthwise convolution, normalisation, ReLU."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = conv(width, width, 1), conv(width, width, groups=width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        return functional.relu(self.bn(self.conv2(self.conv1(x))))


class Gate(nn.Module):
    """A weight in (0, 1) per image and channel."""

    def __init__(self, width):
        super().__init__()
        squeeze = max(1, width // 16)
        self.fc1 = conv(width, squeeze, 1, bias=True)
        self.fc2 = conv(squeeze, width, 1, bias=True)

    def forward(self, x):
        z = functional.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(z))


class OmniScale(nn.Module):
    """Four streams of 1 to 4 Lite layers behind one gate."""

    def __init__(self, inputs, outputs):
        super().__init__()
        width = outputs // 4
        self.conv1 = Unit(inputs, width)
        self.conv2a = Lite(width)
        self.conv2b = nn.Sequential(*(Lite(width) for _ in range(2)))
        self.conv2c = nn.Sequential(*(Lite(width) for _ in range(3)))
        self.conv2d = nn.Sequential(*(Lite(width) for _ in range(4)))
        self.gate = Gate(width)
        self.conv3 = Unit(width, outputs, relu=False)
        self.downsample = None
        if inputs != outputs:
            self.downsample = Unit(inputs, outputs, relu=False)

    def forward(self, x):
        y = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        y = self.conv3(sum(self.gate(stream(y)) for stream in streams))
        return functional.relu(y + (self.downsample(x) if self.downsample else x))


class OSNet(nn.Module):
    """OSNet x0.25 with the 751 identities of Market-1501."""

    def __init__(self):
        super().__init__()
        self.conv1 = Unit(3, 16, 7, 2)
        for stage, inputs, outputs in ((2, 16, 64), (3, 64, 96), (4, 96, 128)):
            layers = [OmniScale(inputs, outputs), OmniScale(outputs, outputs)]
            if stage < 4:
                layers.append(nn.Sequential(Unit(outputs, outputs), nn.AvgPool2d(2)))
            setattr(self, f"conv{stage}", nn.Sequential(*layers))
        self.conv5 = Unit(128, 128)
        self.fc = nn.Sequential(nn.Linear(128, 512), nn.BatchNorm1d(512), nn.ReLU())
        self.classifier = nn.Linear(512, 751)

    def forward(self, x):
        x = functional.max_pool2d(self.conv1(x), 3, 2, 1)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        features = self.fc(x.mean((2, 3)))
        return features, self.classifier(features)


# HRNet-W32-C, arXiv:1908.07919; the authors' names. One exchange module per stage and
# one block per branch: every kind of connection of the full network, a tenth of it.


class Basic(nn.Module):
    """3×3, 3×3."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


def unit(inputs, outputs, size=3, stride=1, relu=True, bias=False):
    """The unit of convolution, normalisation and perhaps ReLU as a sequence."""
    layers = [conv(inputs, outputs, size, stride, bias=bias), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Exchange(nn.Module):
    """A block on every branch, then every branch to every other."""

    def __init__(self, widths):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(Basic(w)) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self.path(widths, j, i) for j in range(len(widths)))
            for i in range(len(widths))
        )

    @staticmethod
    def path(widths, j, i):
        """What takes branch j to the shape of branch i."""
        if j == i:
            return nn.Identity()
        if j > i:
            up = nn.Upsample(scale_factor=2 ** (j - i), mode="nearest")
            return nn.Sequential(*unit(widths[j], widths[i], 1, relu=False), up)
        steps = [unit(widths[j], widths[j], stride=2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, unit(widths[j], widths[i], stride=2, relu=False))

    def forward(self, xs):
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        return [
            functional.relu(sum(path(x) for path, x in zip(paths, xs, strict=True)))
            for paths in self.fuse_layers
        ]


class HRNet(nn.Module):
    """HRNet-W32-C with stages of the least depth."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, stride=2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = conv(64, 64, stride=2), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 256))
        widths = [32, 64, 128, 256]
        self.transition1 = nn.ModuleList(
            [unit(256, 32), nn.Sequential(unit(256, 64, stride=2))]
        )
        for n in (2, 3):
            new = nn.Sequential(unit(widths[n - 1], widths[n], stride=2))
            kept = [nn.Identity() for _ in range(n)]
            setattr(self, f"transition{n}", nn.ModuleList([*kept, new]))
        for n in (2, 3, 4):
            setattr(self, f"stage{n}", nn.Sequential(Exchange(widths[:n])))
        outputs = [128, 256, 512, 1024]
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(w, o))
            for w, o in zip(widths, outputs, strict=True)
        )
        self.downsamp_modules = nn.ModuleList(
            unit(outputs[i], outputs[i + 1], stride=2, bias=True) for i in range(3)
        )
        self.final_layer = unit(1024, 2048, 1, bias=True)
        self.classifier = nn.Linear(2048, 1000)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        xs = self.stage2([path(x) for path in self.transition1])
        xs = self.stage3([*xs, self.transition2[2](xs[-1])])
        xs = self.stage4([*xs, self.transition3[3](xs[-1])])
        xs = [block(x) for block, x in zip(self.incre_modules, xs, strict=True)]
        y = xs[0]
        for down, x in zip(self.downsamp_modules, xs[1:], strict=True):
            y = x + down(y)
        return self.classifier(self.final_layer(y).mean((2, 3)))


# VDSR on the luminance, arXiv:1511.04587; names of a published file.


class Layer(nn.Module):
    """3×3 convolution and ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = conv(64, 64)

    def forward(self, x):
        return functional.relu(self.conv(x))


class VDSR(nn.Module):
    """Twenty convolutions that predict what bicubic interpolation lacks."""

    def __init__(self):
        super().__init__()
        self.input, self.output = conv(1, 64), conv(64, 1)
        self.residual_layer = nn.Sequential(*(Layer() for _ in range(18)))

    def forward(self, x):
        return x + self.output(self.residual_layer(functional.relu(self.input(x))))


# RCAN, arXiv:1807.02758; the authors' names, without their fixed shifts of the mean.


class Excite(nn.Module):
    """A weight in (0, 1) per image and channel."""

    def __init__(self, width, squeeze):
        super().__init__()
        down, up = (
            conv(width, squeeze, 1, bias=True),
            conv(squeeze, width, 1, bias=True),
        )
        self.conv_du = nn.Sequential(down, nn.ReLU(), up, nn.Sigmoid())

    def forward(self, x):
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class Residual(nn.Module):
    """A sequence of layers, and its input."""

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


class RCAN(nn.Module):
    """Two groups of two blocks."""

    def __init__(self, scale, width=16, squeeze=4):
        super().__init__()
        same = partial(conv, width, width, bias=True)

        def block():
            return Residual(same(), nn.ReLU(), same(), Excite(width, squeeze))

        self.head = nn.Sequential(conv(3, width, bias=True))
        groups = [Residual(block(), block(), same()) for _ in range(2)]
        self.body = nn.Sequential(*groups, same())
        up = []
        for factor in {3: [3], 4: [2, 2]}[scale]:
            up += [
                conv(width, width * factor**2, bias=True),
                nn.PixelShuffle(factor),
            ]
        self.tail = nn.Sequential(nn.Sequential(*up), conv(width, 3, bias=True))

    def forward(self, x):
        x = self.head(x)
        return self.tail(x + self.body(x))


# Restormer's block, arXiv:2111.09881; the authors' names.


class MDTA(nn.Module):
    """Attention among the channels of each of four heads."""

    def __init__(self, width):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.qkv = conv(width, 3 * width, 1)
        self.qkv_dwconv = conv(3 * width, 3 * width, groups=3 * width)
        self.project_out = conv(width, width, 1)

    def forward(self, x):
        heads = self.qkv_dwconv(self.qkv(x)).unflatten(1, (3, 4, -1)).flatten(-2)
        q, k, v = heads.unbind(1)  # (B, 4, channels of a head, positions)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        attention = torch.softmax(self.temperature * (q @ k.mT), dim=-1)
        return self.project_out((attention @ v).flatten(1, 2).view_as(x))


class GDFN(nn.Module):
    """One half, through a GELU, times the other."""

    def __init__(self, width):
        super().__init__()
        hidden = int(2.66 * width)
        self.project_in = conv(width, 2 * hidden, 1)
        self.dwconv = conv(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = conv(hidden, width, 1)

    def forward(self, x):
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(functional.gelu(a) * b)


class RestormerBlock(nn.Module):
    """Both behind a normalisation of every pixel."""

    def __init__(self, width=16):
        super().__init__()
        self.norm1, self.norm2 = (
            nn.Sequential(OrderedDict(body=nn.LayerNorm(width))) for _ in range(2)
        )
        self.attn, self.ffn = MDTA(width), GDFN(width)

    def forward(self, x):
        for norm, layer in ((self.norm1, self.attn), (self.norm2, self.ffn)):
            x = x + layer(norm(x.movedim(1, -1)).movedim(-1, 1))
        return x


# The non-local block of AGW, arXiv:2001.04193; the authors' names.


class NonLocal(nn.Module):
    """With all affinities between positions."""

    def __init__(self, width=16):
        super().__init__()
        self.g, self.theta, self.phi = (
            conv(width, width // 2, 1, bias=True) for _ in range(3)
        )
        self.W = nn.Sequential(
            conv(width // 2, width, 1, bias=True), nn.BatchNorm2d(width)
        )

    def forward(self, x):
        g, theta, phi = (
            layer(x).flatten(2) for layer in (self.g, self.theta, self.phi)
        )
        affinity = theta.mT @ phi / g.shape[2]  # (B, positions, positions)
        y = (affinity @ g.mT).mT.unflatten(2, x.shape[2:])
        return x + self.W(y)


def build(network, shape):
    """The network with its recipe's weights, and its images, in float64."""
    model = network().eval()
    shapes = {name: list(x.shape) for name, x in model.state_dict().items()}
    weights = {
        name: torch.from_numpy(recipe.weight(name, tuple(shape)))
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }
    model.load_state_dict(weights, strict=False)
    images = torch.from_numpy(recipe.images(shape)).permute(0, 3, 1, 2)
    return model.double(), images.double(), shapes


def save(name, shapes, shape, **arrays):
    """Writes name.npz, arrays in float32."""
    arrays = {key: x.detach().numpy().astype(np.float32) for key, x in arrays.items()}
    tensors = np.array(json.dumps(shapes))
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, tensors=tensors, shape=np.array(shape), **arrays)
    spread = {key: round(float(x.std()), 3) for key, x in arrays.items()}
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, spread {spread}")


def project(parameters):
    """The projections of the parameters' gradients."""
    rows = []
    for name, x in parameters.items():
        probe = torch.from_numpy(recipe.noise(f"probe {name}", tuple(x.shape)))
        rows.append([float((x.grad * probe).sum()), float(x.grad.norm())])
    return torch.tensor(rows)


def resnet50(shape=(2, 64, 32, 3)):
    """Every fourth channel of the four stages."""
    model, images, shapes = build(ResNet50, shape)
    stages = {
        f"stage{i}": x.permute(0, 2, 3, 1)[..., ::4]
        for i, x in enumerate(model(images), start=1)
    }
    save("resnet50", shapes, shape, **stages)


def osnet(shape=(8, 64, 32, 3)):
    """Outputs; and one step: outputs, statistics and gradients in train mode.

    statistics: all running means and variances after it, one behind the other in the
      order of `tensors`.
    counts: for each of them the number n of values per channel. PyTorch's running
      variance has the factor n / (n - 1) over the batch's.
    projections: of the gradients of the cross entropy of label i for image i.
    gradient NAME: a whole gradient, in PyTorch's layout.
    """
    model, images, shapes = build(OSNet, shape)
    features, logits = model(images)

    counts = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda m, x, _: counts.append((m, x[0].numel() // x[0].shape[1]))
            )
    train_features, train_logits = model.train()(images)
    loss = functional.cross_entropy(train_logits, torch.arange(len(images)))
    loss.backward()
    counts = dict(counts)
    parameters = dict(model.named_parameters())
    running = {k: x for k, x in model.state_dict().items() if "running" in k}
    save(
        "osnet_x0_25",
        shapes,
        shape,
        features=features,
        logits=logits,
        train_features=train_features,
        train_logits=train_logits,
        loss=loss,
        statistics=torch.cat(list(running.values())),
        counts=torch.tensor(
            [counts[model.get_submodule(k.rpartition(".")[0])] for k in running]
        ),
        projections=project(parameters),
        **{f"gradient {name}": parameters[name].grad for name in WHOLE},
    )


def hrnet(shape=(2, 64, 32, 3)):
    """Logits."""
    model, images, shapes = build(HRNet, shape)
    save("hrnet", shapes, shape, logits=model(images))


def vdsr(shape=(2, 32, 16, 1)):
    """Restored luminance."""
    model, images, shapes = build(VDSR, shape)
    save("vdsr", shapes, shape, restored=model(images).permute(0, 2, 3, 1))


def part(name, network, shape):
    """Output; and projections of the gradients of its mean square in train mode."""
    model, images, shapes = build(network, shape)
    output = model(images).permute(0, 2, 3, 1)
    model.train()(images).square().mean().backward()
    projections = project(dict(model.named_parameters()))
    save(name, shapes, shape, output=output, projections=projections)


def parts():
    """The files of `part`."""
    part("rcan_x3", partial(RCAN, 3), (1, 16, 8, 3))
    part("rcan_x4", partial(RCAN, 4), (1, 8, 8, 3))
    part("restormer", RestormerBlock, (2, 16, 8, 16))
    part("non_local", NonLocal, (2, 16, 8, 16))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in (resnet50, osnet, hrnet, vdsr, parts):
        make()
