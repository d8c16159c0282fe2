"""What a network is, in one piece: made once, from options, a checkpoint or an exported folder, and passed on whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from msgspec import Meta

from vankit.data.held_out import HeldOut
from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.models.lka_settings import check_lka
from vankit.schema import Index, Name, check, check_fields, made

Weights = Literal["raw", "ema"]  # as trained, or their moving average, where a checkpoint has both

_TASKS = ("classify", "detect", "segment", "panoptic")
_OF_CLASSIFIERS = ("task", "model", "lka", "classes", "preprocessing")
_OF_SCENES = (
    "task", "head", "model", "lka", "classes", "things", "category_ids", "short_sides", "long_side", "crop", "queries",
    "ignore_label", "map_labels",
)  # fmt: skip
_LARGEST_SIDE = 100_000
_Side = Annotated[int, Meta(ge=1, le=_LARGEST_SIDE)]
# what a checkpoint of a detector or segmenter has to say
_NEEDED = ("task", "head", "model", "classes", "things", "short_sides", "long_side", "queries")


@dataclass(frozen=True)
class Description:
    """What a network is.

    Attributes:
        task: classify, detect, segment or panoptic.
        head: one of `vankit.heads.build.HEADS`; None for a classifier.
        model: of the backbone: van_b0 to van_b6; of a classifier any timm model, None for a network passed as such.
        classes: names by index.
        named: whether the classes have names; else they are the indices as text.
        lka: settings of the attention, see `vankit.LargeKernelAttention`; empty for VAN's own.
        preprocessing: from an image to a classifier's input.
        thresholds: of a multi-label classifier, which may give an image any number of classes: the score, 0 to 1, from
            which on it gives each. Empty for one that gives one class.
        things: for panoptic, whether each class is countable.
        category_ids: the training data's numbers of the classes; 0, 1, … where left out.
        short_sides, long_side: pixels that an image's sides are brought to, see
            `vankit.heads.backbone.input_transform`; detectors and panoptic networks resize by themselves, semantic ones
            take images as they come.
        crop: side in pixels of the squares that a semantic network was trained on.
        queries: number of object queries or proposals, for heads that have them.
        ignore_label: value in label images that counts as unlabelled, in addition to 255.
        map_labels: values in label images that are read as others, see `vankit.data.label_maps.parse_map`.
        held_out: which of its training images it was not trained on but validated with; None where it had others.

    Raises:
        ValueError: there is another number of things, category_ids or thresholds than of classes, or a threshold is out
            of range.
    """

    task: Annotated[str, Meta(pattern=f"^({'|'.join(_TASKS)})$", description=f"one of {', '.join(_TASKS)}")] = (
        "classify"
    )
    head: Name | None = None
    model: Name | None = None
    classes: Annotated[Sequence[Name], Meta(max_length=10**6)] = ()
    named: bool = True
    lka: Mapping[str, Any] = field(default_factory=dict, hash=False)
    preprocessing: Preprocessing | None = None
    thresholds: Sequence[float] = ()
    things: Sequence[bool] = ()
    category_ids: Sequence[Index] = ()
    short_sides: Annotated[Sequence[_Side], Meta(min_length=1, max_length=1000)] = (800,)
    long_side: _Side = 1333
    crop: Annotated[int, Meta(ge=0, le=_LARGEST_SIDE)] = 0
    queries: Annotated[int, Meta(ge=1, le=10_000)] = 100
    ignore_label: Annotated[int, Meta(ge=0, le=255)] = 255
    map_labels: Sequence[Name] = ()
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        defaults = {"things": (True,) * len(self.classes), "category_ids": tuple(range(len(self.classes)))}
        for name, default in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or default)
        check_lka(self.lka)
        for name in (*defaults, *["thresholds"] * self.multi_label):
            if len(getattr(self, name)) != len(self.classes):
                raise UserError(
                    f"there are {len(self.classes)} classes and {len(getattr(self, name))} {name}: expected as many"
                )
        if wrong := [value for value in self.thresholds if not 0 <= value <= 1]:
            raise UserError(f"a threshold is {wrong[0]}: expected 0 to 1")

    @property
    def multi_label(self) -> bool:
        """Whether it is a classifier that may give an image any number of classes."""
        return bool(self.thresholds)

    def to_metadata(self) -> dict[str, Any]:
        """What a checkpoint says of its network, by name: values that JSON holds."""
        names = _OF_CLASSIFIERS if self.task == "classify" else _OF_SCENES
        values = {name: getattr(self, name) for name in names if name != "classes" or self.named}
        if self.preprocessing is not None:
            values["preprocessing"] = asdict(self.preprocessing)
        if self.multi_label:
            values["thresholds"] = self.thresholds
        if self.held_out is not None:
            values["held_out"] = asdict(self.held_out)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], default: "Description | None" = None) -> "Description":
        """The description that a checkpoint's metadata gives; anything else in it is passed over.

        Args:
            metadata: see `vankit.Checkpoint`.
            default: what the metadata leaves out; that of a detector or segmenter is whole.

        Raises:
            ValueError: something is missing, or a value is out of range.
        """
        values = {f.name: metadata[f.name] for f in fields(cls) if f.name in metadata}
        if default is not None:
            values = {f.name: getattr(default, f.name) for f in fields(cls)} | values
        elif missing := [name for name in _NEEDED if name not in values]:
            raise UserError(f"the checkpoint does not say its {missing[0]}: expected best.safetensors of vankit train")
        if isinstance(given := values.get("preprocessing"), Mapping):
            own = asdict(default.preprocessing) if default is not None and default.preprocessing is not None else {}
            values["preprocessing"] = made(Preprocessing, {**own, **given})
        if isinstance(given := values.get("held_out"), Mapping):
            values["held_out"] = made(HeldOut, given)
        return cls(**values)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Check what a file says of its network, all of which it may leave out.

    Args:
        metadata: see `vankit.Checkpoint`. Of a file without a head, which others may have written, what vankit does not
            use is passed over.

    Raises:
        ValueError: a value is of another type than `Description` has it, or out of range.
    """
    said = {name: value for name, value in metadata.items() if value is not None}
    used = _OF_SCENES if "head" in said else (*_OF_CLASSIFIERS[1:], "thresholds")
    for name, kind in (("preprocessing", Preprocessing), ("held_out", HeldOut)):
        if isinstance(given := said.pop(name, None), Mapping):
            check(given, kind)
    check({name: said[name] for name in used if name in said}, Description)
    check_lka(said.get("lka", {}))
