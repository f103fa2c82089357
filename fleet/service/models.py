"""What can be done with models and their versions."""

from __future__ import annotations

import base64
import binascii
from collections import Counter

from fleet.aggregation import changed_values
from fleet.errors import ConflictError, ModelStoreError
from fleet.protocol.manifest import Manifest
from fleet.service import schema
from fleet.service.base import Actor, Base, changing
from fleet.service.roles import Permission
from fleet.store import Distribution, Version
from fleet.store.models import RELEASED, WITHDRAWN


class ModelOperations(Base):
    """What can be done with models and their versions."""

    @changing(Permission.OPERATE)
    def import_bundle(self, actor: Actor, wanted: schema.BundleToImport) -> schema.VersionView:
        """Add a bundle, with its weights as a version where they are new."""
        version = self.models.import_bundle(
            wanted.model, wanted.manifest, _decoded(wanted.weights), actor.who
        )
        self._note(
            actor, "models.import", f"model:{wanted.model}", None, {"version": version.version}
        )
        return _version_view(version)

    def list_models(self, actor: Actor) -> schema.ModelList:
        """All models with their versions."""
        self._allow(actor, Permission.READ)
        return schema.ModelList(models=[self._model(one.model) for one in self.models.list()])

    def model(self, actor: Actor, name: str) -> schema.ModelView:
        """One model."""
        self._allow(actor, Permission.READ)
        return self._model(name)

    def _model(self, name: str) -> schema.ModelView:
        record = self.models.get(name)
        return schema.ModelView(
            model=record.model,
            digest=record.digest,
            created=record.created,
            bundles=[
                schema.BundleView(bundle=one.bundle, board=one.board, created=one.created)
                for one in self.models.bundles(name)
            ],
            versions=[_version_view(one) for one in self.models.versions(name)],
        )

    @changing(Permission.OPERATE)
    def add_version(
        self, actor: Actor, model: str, wanted: schema.VersionToAdd
    ) -> schema.VersionView:
        """Weights that were made elsewhere, as a candidate."""
        if wanted.parent is not None:
            self.models.version(model, wanted.parent)
        version = self.models.add_version(model, _decoded(wanted.weights), wanted.parent, actor.who)
        self._note(
            actor, "models.add-version", f"model:{model}", None, {"version": version.version}
        )
        return _version_view(version)

    def version_blob(self, actor: Actor, model: str, number: int) -> bytes:
        """A version's weights, as devices get them."""
        self._allow(actor, Permission.READ)
        return self.models.blob(model, number)

    @changing(Permission.APPROVE)
    def release(self, actor: Actor, model: str, number: int) -> schema.VersionView:
        """Let campaigns begin with a version, and bring it to devices."""
        before = self.models.version(model, number)
        after = self.models.set_state(model, number, RELEASED)
        self._note(actor, "models.release", f"version:{after.name}", before.state, after.state)
        return _version_view(after)

    @changing(Permission.APPROVE)
    def withdraw_newest(
        self, actor: Actor, model: str, expected: int | None = None
    ) -> schema.VersionView:
        """Take the newest released version back; returns the one that is newest then.

        Raises `ConflictError` where it isn't the one that was `expected`.
        """
        released = [one for one in self.models.versions(model) if one.state == RELEASED]
        if len(released) < 2:
            raise ConflictError(
                f"model {model} has {len(released)} released versions: there is none to go back to"
            )
        newest = released[-1]
        if expected not in (None, newest.version):
            raise ConflictError(
                f"the newest released version is {newest.name}, not {model}:{expected} any more: "
                "nothing was done, look again"
            )
        self.models.set_state(model, newest.version, WITHDRAWN)
        self._note(actor, "models.rollback", f"version:{newest.name}", newest.state, WITHDRAWN)
        return _version_view(self.models.version(model))

    def compare(self, actor: Actor, model: str, first: int, second: int) -> schema.Comparison:
        """Two versions: how they differ, and what the same devices scored with them."""
        self._allow(actor, Permission.READ)
        blobs = [self.models.blob(model, number) for number in (first, second)]
        layout = Manifest.parse(self.models.bundles(model)[0].manifest).tensors
        scores = [
            self.registry.scores_with(self.models.version(model, number).sha256)
            for number in (first, second)
        ]
        both = scores[0].keys() & scores[1].keys()
        changes = [
            scores[1][name][0] * scores[0][name][1] - scores[0][name][0] * scores[1][name][1]
            for name in both
        ]
        counted = [Counter(of[name] for name in both) for of in scores]
        spread = [
            Distribution.of((right, samples, count) for (right, samples), count in of.items())
            for of in counted
        ]
        means = [None if one is None else one.mean for one in spread]
        views = [None if one is None else schema.Scores.model_validate(vars(one)) for one in spread]
        return schema.Comparison(
            model=model,
            first=first,
            second=second,
            changed_values=changed_values(blobs[0], blobs[1], layout),
            values=sum(one.size for one in layout),
            devices=len(both),
            mean_accuracy_first=means[0],
            mean_accuracy_second=means[1],
            scores_first=views[0],
            scores_second=views[1],
            better=sum(one > 0 for one in changes),
            worse=sum(one < 0 for one in changes),
        )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ModelStoreError("weights: not base64") from None


def _version_view(one: Version) -> schema.VersionView:
    return schema.VersionView(
        model=one.model,
        version=one.version,
        sha256=one.sha256,
        parent=one.parent,
        source=one.source,
        state=one.state,
        created=one.created,
    )
