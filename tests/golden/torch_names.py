"""Names and shapes of published networks, written down from their architectures."""


def _conv(name, inputs, outputs, k, *, bias=False):
    yield f"{name}.weight", (outputs, inputs, k, k)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name, width):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def _conv_norm(name, inputs, outputs, k, **options):
    yield from _conv(f"{name}.0", inputs, outputs, k, **options)
    yield from _norm(f"{name}.1", outputs)


def _basic(name, width):
    for n in (1, 2):
        yield from _conv(f"{name}.conv{n}", width, width, 3)
        yield from _norm(f"{name}.bn{n}", width)


def _bottleneck(name, inputs, planes):
    widths = [(inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)]
    for n, (a, b, k) in enumerate(widths, start=1):
        yield from _conv(f"{name}.conv{n}", a, b, k)
        yield from _norm(f"{name}.bn{n}", b)
    if inputs != 4 * planes:
        yield from _conv_norm(f"{name}.downsample", inputs, 4 * planes, 1)


def _exchange(name, widths):
    for i, width in enumerate(widths):
        for b in range(4):
            yield from _basic(f"{name}.branches.{i}.{b}", width)
    for i, to in enumerate(widths):
        for j, start in enumerate(widths):
            fuse = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                yield from _conv_norm(fuse, start, to, 1)
            for n in range(i - j):
                outputs = to if n == i - j - 1 else start
                yield from _conv_norm(f"{fuse}.{n}", start, outputs, 3)


def hrnet_w32_c(width=32):
    """Names and shapes of HRNet-W32-C in PyTorch; of W18-C if width is 18."""
    yield from _conv("conv1", 3, 64, 3)
    yield from _norm("bn1", 64)
    yield from _conv("conv2", 64, 64, 3)
    yield from _norm("bn2", 64)
    for b in range(4):
        yield from _bottleneck(f"layer1.{b}", 256 if b else 64, 64)
    widths = [width, 2 * width, 4 * width, 8 * width]
    yield from _conv_norm("transition1.0", 256, widths[0], 3)
    yield from _conv_norm("transition1.1.0", 256, widths[1], 3)
    yield from _conv_norm("transition2.2.0", widths[1], widths[2], 3)
    yield from _conv_norm("transition3.3.0", widths[2], widths[3], 3)
    for stage, num_modules in ((2, 1), (3, 4), (4, 3)):
        for m in range(num_modules):
            yield from _exchange(f"stage{stage}.{m}", widths[:stage])
    for i, inputs in enumerate(widths):
        yield from _bottleneck(f"incre_modules.{i}.0", inputs, 32 * 2**i)
    for i in range(3):
        inputs, outputs = 128 * 2**i, 256 * 2**i
        yield from _conv_norm(f"downsamp_modules.{i}", inputs, outputs, 3, bias=True)
    yield from _conv_norm("final_layer", 1024, 2048, 1, bias=True)
    yield "classifier.weight", (1000, 2048)
    yield "classifier.bias", (1000,)
