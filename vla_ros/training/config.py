"""The training file: every setting typed and checked, every wrong entry reported at once. The schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vla_ros.core.errors import VlaError
from vla_ros.policy.model import ModelConfig
from vla_ros.sim.tasks import FAMILIES
from vla_ros.training.dataset import Augment

TUNES = ("full", "head", "lora")


class ConfigInvalid(VlaError):
    """A training file, or a start, that cannot be used; lists everything that is wrong."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(Strict):
    """Factors of the parts of the loss, see `vla_ros.training.losses`."""

    action: float = Field(1.0, ge=0)
    where: float = Field(0.5, ge=0)
    point: float = Field(1.0, ge=0)
    aim: float = Field(0.0, ge=0)
    done: float = Field(0.1, ge=0)
    sure: float = Field(0.05, ge=0)


class TrainConfig(Strict):
    """One training run. Sizes that the data decides (cameras, pixels, columns, words) are taken from it."""

    robot: str = "panda"
    seed: int = 1
    steps: int = Field(3000, ge=1)
    batch: int = Field(128, ge=1)  # samples of one step, over all threads and processes
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["warmup_stable_decay", "warmup_cosine"] = "warmup_stable_decay"
    # Pointing alone is learned first, for so many steps: by everything that points, or by what --from did not have.
    point_steps: int = Field(0, ge=0)
    warmup_steps: int = Field(200, ge=1)
    decay_fraction: float = Field(0.3, ge=0, le=1)  # of the run; warmup_stable_decay only
    ema: float = Field(0.998, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    draws: int = Field(4, ge=1)
    prefix_probability: float = Field(0.5, ge=0, le=1)
    done_share: float = Field(0.0, ge=0, le=0.5)
    families: dict[str, Annotated[float, Field(gt=0)]] = {}  # how often each is drawn; 1 for those not named
    old_share: float = Field(0.5, gt=0, lt=1)  # of all samples, from the folders given as --old-data
    # How much of what old samples teach is what the policy from before answers, not their labels: 1 keeps a policy as
    # good as it is, 0 teaches old data again.
    keep: float = Field(0.0, ge=0, le=1)
    # Of what is drawn from data in which a person took over from a policy: so much is what the person did. Half, as in
    # intervention weighted regression (2012.06733); null: as often as it was recorded.
    human_share: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    # Words that only tell things apart and never change how something is done: heard by the naming alone.
    names: tuple[str, ...] = ()
    tune: Literal["full", "head", "lora"] = "full"  # what is trained: all, all but the backbone, adapters in it
    lora_rank: int = Field(16, ge=1)
    weights: Weights = Weights()
    augment: Augment = Augment()
    validation_fraction: float = Field(0.03, gt=0, lt=0.5)
    validation_every: int = Field(250, ge=1)
    validation_samples: int = Field(512, ge=1)
    save_every: int = Field(250, ge=1)
    snapshot_every: int = Field(500, ge=1)
    threads: int = Field(2, ge=1)  # of each process
    mixed_precision: Literal["auto", "off"] = "off"  # auto: bfloat16 where the processor computes with it
    device: Literal["cpu", "cuda"] = "cpu"
    model: ModelConfig = ModelConfig()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare off as false

    @field_validator("families")
    @classmethod
    def _families_exist(cls, families: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown:
            raise ValueError(f"families names {', '.join(unknown)}, allowed: {', '.join(FAMILIES)}")
        return families

    @field_validator("model")
    @classmethod
    def _sizes_work(cls, model: ModelConfig) -> ModelConfig:
        model.validate()
        return model


def load_config(path: Path) -> TrainConfig:
    """Read a training file. Raises ConfigInvalid with every wrong entry."""
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"{path}: not readable: {error}") from error
    except ValidationError as error:
        lines = []
        for e in error.errors():
            where = ".".join(str(p) for p in e["loc"])
            lines.append(
                f"  {where}: {e['msg']} (is {e['input']!r})" if e["type"] != "value_error" else f"  {e['msg']}"
            )
        raise ConfigInvalid(f"{path}: {len(lines)} wrong entries\n" + "\n".join(lines)) from error


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """0..1. `progress` 0..1 of the run, by steps or by time, whichever is further. Warm-up is linear, once per stage.

    warmup_stable_decay: constant, then linear to zero over the last part (MiniCPM, 2404.06395): a run may be prolonged
    from any checkpoint of the constant part. warmup_cosine: half a cosine to zero (1608.03983)."""
    since = step if step < config.point_steps else step - config.point_steps
    warm = min(1.0, (since + 1) / config.warmup_steps)
    if config.schedule == "warmup_cosine":
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    tail = (1.0 - progress) / config.decay_fraction if config.decay_fraction > 0 else 1.0
    return warm * max(0.0, min(1.0, tail))
