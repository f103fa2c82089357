"""A device's task of a round, made in one place: what is signed and what is published are one."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.protocol.masking import MaskParameters
from fleet.protocol.messages import NO_UNMASKERS, Task
from fleet.protocol.numbers import Action, Coding, Weighting
from fleet.protocol.round_parameters import ACTIONS, CODINGS, WEIGHTINGS, RoundParameters
from fleet.protocol.seeds import device_seed


@dataclass(frozen=True)
class RoundTasks:
    """What the tasks of a round have in common; the same at whoever signs and whoever publishes."""

    campaign: bytes
    round: int
    action: str
    seed: int
    """Of the round; a device's is derived from it."""
    parameters: RoundParameters
    personal: int = 0
    masks: MaskParameters | None = None
    unmaskers: bytes = NO_UNMASKERS
    """Which keys the seeds of masks are sealed for (`keys.unmaskers_digest`)."""

    def task(
        self, device: str, lease: int, plan: bytes, weights: bytes, weights_bytes: int
    ) -> Task:
        """That of one device, with neither keyring nor signature."""
        of, masks = self.parameters, self.masks
        action = Action(ACTIONS.index(self.action))
        return Task(
            lease=lease,
            campaign=self.campaign,
            round=self.round,
            action=action,
            plan=plan,
            weights=weights,
            weights_bytes=weights_bytes,
            chunk_bytes=of.chunk_bytes,
            epochs=of.epochs if action is Action.TRAIN else 0,
            learning_rate_q20=of.learning_rate_q20,
            seed=device_seed(self.seed, device),
            coding=Coding(CODINGS.index(of.coding)),
            weighting=Weighting(WEIGHTINGS.index(of.weighting)),
            uplink_chunk_bytes=of.uplink_chunk_bytes,
            deadline_seconds=of.deadline_seconds,
            max_score_drop_permille=of.max_score_drop_permille,
            check_in_seconds=of.check_in_seconds,
            personal=self.personal,
            mask_bits=masks.bits if masks else 0,
            value_bound=masks.value_bound if masks else 0,
            clip=masks.clip if masks else 0,
            norm_share=masks.norm_share if masks else 0,
            noise_variance=masks.noise_variance if masks else 0,
            least_devices=masks.least_devices if masks else 0,
            unmaskers=self.unmaskers,
        )
