"""`mvmae data show`: draw images, their views, and what the masks leave of them."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from mvmae import terminal
from mvmae.config.datatools import DataShowConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.detect_kind import detect_kind
from mvmae.data.reading.loader import ViewsDataset
from mvmae.data.sources.base import Source, plain_channels
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.figures import page
from mvmae.figures.page import Column
from mvmae.inspect.choose_images import HIDDEN, Chosen, choose, report_missing, select_channels
from mvmae.method.augmentations import augment
from mvmae.method.patches import masking_from_noise, patchify, unpatchify
from mvmae.method.preflight.resolve_config import resolve_config
from mvmae.method.views import Box, crop, to_display_range
from mvmae.storage.outputs import require_picture, write

WHOLE_IMAGE_SIDE = 256  # pixels of its longer side on the sheet


def run(config: DataShowConfig) -> None:
    """Draw the sheet.

    Raises:
        UserError: No image can be read, or --out cannot be written.
    """
    require_picture(config.out, config.data)
    source = open_source(config.data, plain_channels(config.model.in_channels))
    own = choose_channels(config, source)
    settings = PretrainConfig(
        data=config.data,
        model=replace(config.model, head="none", in_channels=own),
        views=config.views,
        # Nothing is trained; a patch of one pixel could not be normalised.
        objective=ObjectiveConfig(contrastive_weight=0.0, normalize_targets=False),
        seed=config.seed,
        workers=0,
    )
    # The depth and the statistics that a run would infer, so that the sheet shows its pixels.
    trained, source, remarks = resolve_config(settings, source)
    chosen = choose(source, config.count, config.seed)
    images = Column("image", read_whole_images(source, chosen, trained, config.channels))
    views = draw_views(source, chosen, trained, config.channels)
    height, width = trained.model.height_width
    picture = page.draw(
        page.columns_to_rows([images], chosen.names, [("", columns) for columns in views]),
        title=f"{' '.join(trained.data)}: {len(source)} images; views of {height} x {width}, "
        f"{trained.model.num_visible} of {trained.model.num_patches} patches seen",
        note=describe_views(trained.views),
    )
    write(config.out, picture)
    console = terminal.console()
    if own != config.model.in_channels:
        console.print(
            f"the images have {own} channels: pretrain reads them with --model.in-channels {own}"
        )
    for remark in remarks:
        console.print(remark)
    report_missing(chosen, config.count)
    console.print(f"written: {config.out}")
    terminal.emit("result", {"command": "data show", "file": str(config.out)})


def choose_channels(config: DataShowConfig, source: Source) -> int:
    """Return --model.in-channels; where its default of 3 does not fit, the images' own number.

    Raises:
        UserError: --channels names a channel beyond these.
    """
    own = config.model.in_channels
    if own == 3 and not (kind := detect_kind(source, config.seed)).fits(own):
        own = kind.channels
    if max(config.channels, default=1) > own:
        raise UserError(
            f"--channels {' '.join(map(str, config.channels))} are counted from 1 to {own}, the "
            "images' channels; --model.in-channels sets how many are read"
        )
    return own


def read_whole_images(
    source: Source, chosen: Chosen, trained: PretrainConfig, channels: tuple[int, ...]
) -> list[Float[np.ndarray, "_ _ C"]]:
    """Read the images in their own shapes, shrunk to the size on the sheet."""
    found = []
    for index in chosen.indices:
        pixels = source.read(index)
        height, width = pixels.shape[1:]
        scale = min(1.0, WHOLE_IMAGE_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = crop(pixels, Box(0, 0, *pixels.shape[1:]), size, trained.views.interpolation)
        shown = to_display_range(small[None], *trained.pixel_statistics, like=pixels[None])
        found.append(select_channels(shown.permute(0, 2, 3, 1).numpy(), channels)[0])
    return found


def draw_views(
    source: Source, chosen: Chosen, trained: PretrainConfig, channels: tuple[int, ...]
) -> list[list[Column]]:
    """Draw the views of the first epoch, each with and without its mask."""
    # The dataset of training with epoch 0: the same seed gives the views of a run's first epoch.
    dataset, shape = ViewsDataset(source, trained), trained.model
    rows, noise = [], []
    for index in chosen.indices:
        sample = dataset[0, index]
        if (views := sample.views) is None:
            continue
        if sample.augmentations is not None:  # which training applies on the device
            changed = augment(views, sample.augmentations, trained.views, shape.in_channels)
            views = (255 * changed).round().byte() if views.dtype == torch.uint8 else changed
        # Each image in its own range of brightness.
        own = source.read(index)[None]
        rows.append(to_display_range(views, *trained.pixel_statistics, like=own))
        noise.append(sample.noise)
    found = []
    for number in range(trained.views.num_views):
        shown = torch.stack([row[number] for row in rows])
        hidden = masking_from_noise(torch.stack([one[number] for one in noise]), shape.num_visible)
        marks = hidden.mask[..., None].expand_as(patchify(shown, shape.patch_size)).contiguous()
        is_hidden = unpatchify(marks, shape.patch_size, shape.grid)
        whole, masked = (
            select_channels(one.permute(0, 2, 3, 1).numpy(), channels)
            for one in (shown, shown * (1 - is_hidden) + HIDDEN * is_hidden)
        )
        heading = f"view {number + 1}" if trained.views.num_views > 1 else "view"
        found.append([Column(heading, list(whole)), Column("what is seen", list(masked))])
    return found


def describe_views(views: ViewsConfig) -> str:
    """Describe how the views are made."""
    low, high = views.crop_scale
    mirrored = {"none": "not mirrored", "horizontal": "half are mirrored"}
    ways = [
        f"{low:.0%} to {high:.0%} of the image's area",
        mirrored.get(views.flip, "half are mirrored, half upside down"),
    ]
    if views.color_jitter:
        ways.append(f"four in five in other colours, strength {views.color_jitter:g}")
    if views.grayscale:
        ways.append(f"{views.grayscale:.0%} are gray")
    text = f"Each view: {', '.join(ways)}."
    if views.pixel_depth != "8":
        text += " Colours: each channel within 2.5 deviations of its mean."
    return text
