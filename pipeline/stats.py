"""What a loader did and where its time went."""

from dataclasses import asdict, dataclass


@dataclass
class LoaderStats:
    """Counts since the loader was made, what is prefetched (in training also of the next epoch) included.

    wait_seconds: the consumer waited for a batch, the only time that costs training. The others run in the background.
    """

    clips_read: int = 0
    clips_decoded: int = 0
    clips_skipped: int = 0
    batches: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0    # read, parse, plan
    decode_seconds: float = 0.0  # decode, geometry, pixel augmentation

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
