"""Models and the versions of their weights, in a store's database."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fleet.errors import ModelStoreError, UnknownModelError
from fleet.protocol.manifest import Manifest
from fleet.store.sql import SqlStore
from fleet.store.tables import bundles, models, versions

CANDIDATE, RELEASED, WITHDRAWN = "candidate", "released", "withdrawn"


@dataclass(frozen=True)
class ModelRecord:
    """A model: a lineage of weights over one graph, whose digest is the same on every board."""

    model: str
    digest: str
    created: float


@dataclass(frozen=True)
class BundleRecord:
    """Firmware of a model for a board."""

    bundle: str
    model: str
    board: str
    manifest: str
    created: float


@dataclass(frozen=True)
class Version:
    """A version of a model's weights, without the weights.

    `source` is the campaign that it came of, or who brought it in; `state` is `candidate`,
    `released` or `withdrawn`.
    """

    model: str
    version: int
    sha256: str
    parent: int | None
    source: str
    state: str
    created: float

    @property
    def name(self) -> str:
        """MODEL:NUMBER."""
        return f"{self.model}:{self.version}"


_VERSION = tuple(column for column in versions.c if column.name != "blob")


class Models:
    """The models of a store."""

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def import_bundle(self, model: str, manifest_text: str, blob: bytes, source: str) -> Version:
        """Add a bundle to a model, which is made where it is new, with its weights as version 1.

        That one is released, since campaigns have to begin with something. Weights that are new to
        a model that is there are a candidate: who imports can't replace what campaigns begin with.
        Raises `ModelStoreError` where it is a bundle of another model, or the weights aren't its
        own.
        """
        manifest = Manifest.parse(manifest_text, "the bundle's manifest")
        digest = hashlib.sha256(blob).hexdigest()
        if digest != manifest.weights.sha256:
            raise ModelStoreError(
                f"bundle {manifest.bundle_id[:16]} was built with weights "
                f"{manifest.weights.sha256[:16]}…, not {digest[:16]}…; bring its own weights.bin"
            )
        now = self._store.clock.wall()
        with self._store.writing() as connection:
            known = connection.execute(
                sa.select(models.c.digest).where(models.c.model == model)
            ).scalar()
            if known is None:
                connection.execute(
                    sa.insert(models),
                    {"model": model, "digest": manifest.model.digest, "created": now},
                )
            elif known != manifest.model.digest:
                raise ModelStoreError(
                    f"bundle {manifest.bundle_id[:16]} is of another model than {model} "
                    f"({manifest.model.digest[:16]}…, not {known[:16]}…): import it under another "
                    "name, or compile all boards' bundles from one model and calibration"
                )
            owner = connection.execute(
                sa.select(bundles.c.model).where(bundles.c.bundle == manifest.bundle_id)
            ).scalar()
            if owner not in (None, model):
                raise ModelStoreError(
                    f"bundle {manifest.bundle_id[:16]} is of model {owner} already, not of {model}"
                )
            connection.execute(
                self._store.inserting_new(bundles),
                {
                    "bundle": manifest.bundle_id,
                    "model": model,
                    "board": manifest.board.name,
                    "manifest": manifest_text,
                    "created": now,
                },
            )
            self._note_power(connection, manifest, manifest_text)
            found = self._find(connection, model, sha256=digest)
            state = RELEASED if known is None else CANDIDATE
            return found or self._insert(connection, model, blob, None, source, state)

    def _note_power(
        self, connection: sa.Connection, manifest: Manifest, manifest_text: str
    ) -> None:
        """Take over what is said of a known bundle's board now, where nothing else has changed."""
        where = bundles.c.bundle == manifest.bundle_id
        known = Manifest.parse(
            connection.execute(sa.select(bundles.c.manifest).where(where)).scalar_one()
        )
        if known != manifest and known.model_copy(update={"board": manifest.board}) == manifest:
            connection.execute(sa.update(bundles).where(where).values(manifest=manifest_text))

    def add_version(
        self, model: str, blob: bytes, parent: int | None, source: str, state: str = CANDIDATE
    ) -> Version:
        """A new version; the one that has these weights already, where there is one.

        That one may be released by this, but isn't taken back, nor released again once withdrawn.
        """
        manifests = [Manifest.parse(one.manifest) for one in self.bundles(model)]
        if len(blob) != manifests[0].weights.bytes:
            raise ModelStoreError(
                f"a version of {model} has {manifests[0].weights.bytes} bytes, not {len(blob)}"
            )
        with self._store.writing() as connection:
            found = self._find(connection, model, sha256=hashlib.sha256(blob).hexdigest())
            if found is None:
                return self._insert(connection, model, blob, parent, source, state)
        if (found.state, state) == (CANDIDATE, RELEASED):
            self.set_state(model, found.version, state)
        return self.version(model, found.version)

    def _insert(
        self,
        connection: sa.Connection,
        model: str,
        blob: bytes,
        parent: int | None,
        source: str,
        state: str,
    ) -> Version:
        newest = connection.execute(
            sa.select(sa.func.max(versions.c.version)).where(versions.c.model == model)
        ).scalar()
        row: dict[str, Any] = {
            "model": model,
            "version": int(newest or 0) + 1,
            "sha256": hashlib.sha256(blob).hexdigest(),
            "parent": parent,
            "source": source,
            "state": state,
            "created": self._store.clock.wall(),
        }
        connection.execute(sa.insert(versions), {**row, "blob": blob})
        return Version(**row)

    def _find(self, connection: sa.Connection, model: str, **values: Any) -> Version | None:
        query = sa.select(*_VERSION).where(versions.c.model == model)
        for name, value in values.items():
            query = query.where(versions.c[name] == value)
        row = connection.execute(query.order_by(versions.c.version.desc()).limit(1)).first()
        return None if row is None else Version(**row._mapping)

    def list(self) -> tuple[ModelRecord, ...]:
        """All models, by name."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(models).order_by(models.c.model))
            return tuple(ModelRecord(*row) for row in rows)

    def get(self, model: str) -> ModelRecord:
        """One model. Raises `ModelStoreError` where it isn't known."""
        found = [one for one in self.list() if one.model == model]
        if not found:
            names = ", ".join(one.model for one in self.list()) or "none"
            raise UnknownModelError(
                f"there is no model {model}; there are: {names}. `tinyfleet models import` adds one"
            )
        return found[0]

    def bundles(self, model: str) -> tuple[BundleRecord, ...]:
        """A model's bundles, by board."""
        self.get(model)
        query = sa.select(bundles).where(bundles.c.model == model)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(bundles.c.board, bundles.c.bundle))
            return tuple(BundleRecord(*row) for row in rows)

    def manifest(self, bundle: str) -> str | None:
        """The manifest of a bundle; None where nobody has imported it."""
        query = sa.select(bundles.c.manifest).where(bundles.c.bundle == bundle)
        with self._store.reading() as connection:
            return connection.execute(query).scalar()

    def manifests(self, model: str) -> Mapping[str, str]:
        """Manifests of a model's bundles: bundle id → JSON text."""
        return {one.bundle: one.manifest for one in self.bundles(model)}

    def versions(self, model: str) -> tuple[Version, ...]:
        """A model's versions, oldest first."""
        self.get(model)
        query = sa.select(*_VERSION).where(versions.c.model == model)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(versions.c.version))
            return tuple(Version(**row._mapping) for row in rows)

    def version(self, model: str, number: int | None = None) -> Version:
        """One version; the newest released one without a number."""
        self.get(model)
        wanted = {"state": RELEASED} if number is None else {"version": number}
        with self._store.reading() as connection:
            found = self._find(connection, model, **wanted)
        if found is None:
            what = "released version" if number is None else f"version {number}"
            raise UnknownModelError(
                f"model {model} has no {what}; see `tinyfleet models show {model}`"
            )
        return found

    def blob(self, model: str, number: int) -> bytes:
        """A version's weights, as devices get them."""
        self.version(model, number)
        query = sa.select(versions.c.blob).where(
            versions.c.model == model, versions.c.version == number
        )
        with self._store.reading() as connection:
            return bytes(connection.execute(query).scalar_one())

    def blob_of(self, sha256: str) -> bytes | None:
        """The weights with this digest, whatever model's."""
        query = sa.select(versions.c.blob).where(versions.c.sha256 == sha256).limit(1)
        with self._store.reading() as connection:
            found = connection.execute(query).scalar()
            return None if found is None else bytes(found)

    def names(self, digests: Collection[str]) -> dict[str, str]:
        """MODEL:NUMBER of those of the digests that are a version's."""
        query = sa.select(versions.c.sha256, versions.c.model, versions.c.version)
        query = query.where(versions.c.sha256.in_(digests)).order_by(versions.c.created.desc())
        with self._store.reading() as connection:
            return {digest: f"{of}:{number}" for digest, of, number in connection.execute(query)}

    def set_state(self, model: str, number: int, state: str) -> Version:
        """Release or withdraw a version: campaigns begin with the newest released one."""
        self.version(model, number)
        with self._store.writing() as connection:
            connection.execute(
                sa.update(versions)
                .where(versions.c.model == model, versions.c.version == number)
                .values(state=state)
            )
        return self.version(model, number)
