"""Settings of a run that have no effect, since others switch off what they set."""

from __future__ import annotations

from vartok.errors import counted
from vartok.train.settings import LossSettings, TrainSettings


def unused_settings(settings: TrainSettings) -> list[str]:
    """Return a sentence for each reason why settings are not used; those with their default are not named.

    Settings that `keep_tokens` makes useless are in `UNUSED_IF_TOKENS_ARE_KEPT`.
    """
    loss, channels = settings.loss, settings.model.in_channels
    notes = []
    if settings.data.grayscale_prob and channels != 3:
        notes.append(
            f"[data] grayscale_prob is not used: the model has {counted(channels, 'channel')}, not 3"
        )
    if not loss.adversarial:
        names = ("adversarial_net", "adversarial_adaptive", "adversarial_start", "adversarial_ramp")
        notes += _note(loss, names, "adversarial is 0")
    if not loss.uses_features:
        reason = "neither perceptual nor a projected discriminator is used"
        notes += _note(loss, ("perceptual_net",), reason)
    return notes


def _note(loss: LossSettings, names: tuple[str, ...], reason: str) -> list[str]:
    default = LossSettings()
    changed = [name for name in names if getattr(loss, name) != getattr(default, name)]
    verb = "is" if len(changed) == 1 else "are"
    return [f"[loss] {', '.join(changed)} {verb} not used: {reason}"] if changed else []
