"""What a reader is told about one domain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from da_leukemia.errors import ConfigError, did_you_mean
from da_leukemia.labels import LabelSpace, known_names, translate


@dataclass(frozen=True)
class DomainSource:
    """Where one domain lies on disk.

    Attributes:
        domain: name of the device; for LeukemiaAttri also the name of its folder.
        root: folder of the data set.
        labels: label file or folder relative to ``root`` (LeukemiaAttri: to the domain folder);
            "" or "auto" looks for it.
        classes: the classes that the domain labels; None takes what the files say.
        patient_pattern: regular expression with a group ``patient``, searched in the file name,
            where the files carry no patient.
        patch_order: how the patch columns of Sparse-LeukemiaAttri are read; "auto" finds out.
        folders: single cells: the folders below ``root`` that are read; None reads all.
    """

    domain: str
    root: Path
    labels: str = "auto"
    classes: tuple[str, ...] | None = None
    patient_pattern: str | None = None
    patch_order: str = "auto"
    folders: tuple[str, ...] | None = None

    def patient_regex(self) -> re.Pattern[str] | None:
        """Compile ``patient_pattern``.

        Raises:
            ConfigError: it is no regular expression or has no group ``patient``.
        """
        if self.patient_pattern is None:
            return None
        setting = f"data.domains.{self.domain}.patient_pattern"
        try:
            compiled = re.compile(self.patient_pattern)
        except re.error as e:
            raise ConfigError(f"{setting}: {self.patient_pattern!r} is no pattern: {e}") from None
        if "patient" not in compiled.groupindex:
            raise ConfigError(
                f"{setting}: needs a group named patient, e.g. '^(?P<patient>[^_]+)_'"
            )
        return compiled

    def declared_classes(self, space: LabelSpace) -> tuple[int, ...] | None:
        """Return ``classes`` as indices of ``space``, or None where the files decide.

        Raises:
            ConfigError: a name is unknown; carries a suggestion.
        """
        if self.classes is None:
            return None
        indices = set()
        for name in self.classes:
            try:
                index = translate(name, space)
            except KeyError:
                raise ConfigError(
                    f"data.domains.{self.domain}.classes: unknown class {name!r}"
                    f"{did_you_mean(name, known_names(space))}"
                ) from None
            # A class that this space does not have is a fact about the domain, not an error.
            if index is not None and index >= 0:
                indices.add(index)
        return tuple(sorted(indices))
