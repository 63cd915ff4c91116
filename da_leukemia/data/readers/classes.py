"""Class names of label files in the terms of a label space."""

from __future__ import annotations

from collections.abc import Iterable

from da_leukemia.data.readers.findings import FindingLog
from da_leukemia.errors import did_you_mean
from da_leukemia.labels import UNKNOWN, LabelSpace, known_names, translate


class ClassNames:
    """Translates the class names of one domain and reports what becomes of each box.

    Args:
        space: label space to translate into.
        log: receives what is not read as written.
        declared: the classes of the setting `classes`, None where the files decide.
    """

    def __init__(
        self, space: LabelSpace, log: FindingLog, declared: tuple[int, ...] | None = None
    ) -> None:
        self.space = space
        self.log = log
        self.declared = declared
        self._labels: dict[str, int | None] = {}
        self._foreign: dict[str, bool] = {}  # name that nobody knows: has been shown

    def find(self, name: str) -> int | None:
        """Return the class of a name, `UNKNOWN` for an unknown type or name, None: background."""
        if name not in self._labels:
            try:
                self._labels[name] = translate(name, self.space)
            except KeyError:
                self._labels[name] = UNKNOWN
                self._foreign[name] = False
        return self._labels[name]

    def seen(self, names: Iterable[str]) -> tuple[int, ...]:
        """Return the classes among ``names``, sorted."""
        return tuple(sorted({i for n in names if (i := self.find(n)) is not None and i >= 0}))

    def label(self, name: str, where: str) -> int | None:
        """Return the label of a box (see `find`) and report where it is not a class."""
        label = self.find(name)
        if name in self._foreign:
            # One example of each name says more than five of the first.
            self.log.add(
                "unknown_class_name", "" if self._foreign[name] else self._say(name, where)
            )
            self._foreign[name] = True
        elif label is None:
            self.log.add("not_in_label_space", f"{where}: {name}")
        elif label == UNKNOWN:
            self.log.add("unknown_cell_type", f"{where}: {name}")
        elif self.declared is not None and label not in self.declared:
            self.log.add("class_not_declared", f"{where}: {name}")
            label = UNKNOWN
        return label

    def note_unused(self, listed: Iterable[str], seen: tuple[int, ...], where: str = "") -> None:
        """Report classes that the files list but have no box of."""
        for name in listed:
            index = self.find(name)
            if index is not None and index >= 0 and index not in seen:
                self.log.add("class_without_boxes", f"{where}{name}")

    def _say(self, name: str, where: str) -> str:
        hint = did_you_mean(name[:80].lower(), known_names(self.space))
        return f"{where}: unknown class {name[:80]!r}{hint}"
