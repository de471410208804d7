"""Generated pedestrians: a data set that needs no download and shows no real person."""

import dataclasses
import itertools

import tensorflow_datasets as tfds

from input_pipeline.datasets import records
from input_pipeline.datasets.drawing import draw_pedestrian


@dataclasses.dataclass(kw_only=True)
class PedestriansConfig(tfds.core.BuilderConfig):
    """How many pedestrians there are and how they are drawn."""

    num_identities: int
    num_cameras: int
    num_shots: int  # pictures of an identity in each camera
    height: int  # pixels
    width: int  # pixels
    seed: int


class Pedestrians(tfds.core.GeneratorBasedBuilder):
    """Drawn pedestrians: `c1/0007_2.png` is shot 2 of identity 7 in camera 1."""

    VERSION = tfds.core.Version("1.2.0")  # raise it when other pictures are drawn
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS names and reads it); the first is default
        PedestriansConfig(
            name="demo",
            num_identities=320,
            num_cameras=3,
            num_shots=2,
            height=64,
            width=32,
            seed=0,
        ),
        PedestriansConfig(
            name="tiny",
            num_identities=12,
            num_cameras=3,
            num_shots=2,
            height=32,
            width=16,
            seed=0,
        ),
    ]

    def _info(self):
        return records.dataset_info(self, "Generated pedestrians.")

    def _split_generators(self, dl_manager):
        return records.split_generators(self, self._generate_examples())

    def _generate_examples(self):
        config = self.builder_config
        pictures = itertools.product(
            range(config.num_identities),
            range(config.num_cameras),
            range(config.num_shots),
        )
        for key, (pid, camid, shot) in enumerate(pictures):
            pixels = draw_pedestrian(
                *(config.seed, pid, camid, shot),
                height=config.height,
                width=config.width,
            )
            name = f"c{camid}/{pid:04d}_{shot}.png"
            yield (
                key,
                records.record(name, records.encode_png(pixels), pid=pid, camid=camid),
            )
